#pragma once

#include <filesystem>
#include <opencv2/core.hpp>
#include <opencv2/videoio.hpp>
#include <set>
#include <string>

#include "sources.hpp"

namespace detector {

/// A new folder that drawings are written to: an image for an image, an .mp4 for a video.
class OutputFolder {
  public:
    /// Creates `wanted`, or `wanted-2`, `wanted-3`, ... if it exists. Throws InputError.
    explicit OutputFolder(const std::filesystem::path& wanted);

    const std::filesystem::path& path() const { return path_; }

    /// Writes the drawing of a frame; frames of a video come one after the other. Throws
    /// std::runtime_error.
    void write(const Frame& frame, const cv::Mat& drawing);

  private:
    /// A name that no file here has yet: images of several folders may have equal names.
    std::filesystem::path free_name(const std::filesystem::path& source, const std::string& suffix);
    void write_image(const Frame& frame, const cv::Mat& drawing);
    void write_video(const Frame& frame, const cv::Mat& drawing);

    std::filesystem::path path_;
    std::set<std::string> taken_;
    cv::VideoWriter video_;
    cv::Size video_size_;
};

}  // namespace detector
