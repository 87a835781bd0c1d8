#pragma once

#include <filesystem>
#include <memory>
#include <opencv2/core.hpp>
#include <opencv2/videoio.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace detector {

/// One picture of a source.
struct Frame {
    std::filesystem::path path;
    cv::Mat image;              // BGR, uint8
    std::optional<int> number;  // of a video: 1, 2, ...
    double fps = 0;             // of a video

    /// What messages call it: `a.jpg`, or `clip.mp4 frame 7`.
    std::string title() const;
};

/// A file that could not be read.
struct Failure {
    std::filesystem::path path;
    std::string reason;
};

/// Reads images and videos one picture at a time.
class FrameReader {
  public:
    /// Lists the files; those of a folder are sorted. Throws InputError: nothing there.
    explicit FrameReader(const std::vector<std::filesystem::path>& sources);

    /// The next picture or the next file that cannot be read; empty at the end.
    std::optional<std::variant<Frame, Failure>> next();

  private:
    std::optional<Frame> next_of_video();

    std::vector<std::filesystem::path> files_;
    std::size_t next_file_ = 0;
    cv::VideoCapture video_;
    int frames_read_ = 0;  // of this video
};

bool is_video(const std::filesystem::path& path);
bool is_image(const std::filesystem::path& path);

}  // namespace detector
