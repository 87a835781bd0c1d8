#include "sources.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <iterator>
#include <opencv2/imgcodecs.hpp>

#include "input_error.hpp"
#include "model_info.hpp"

namespace detector {

namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 7> image_suffixes = {".jpg",  ".jpeg", ".png", ".bmp",
                                                       ".webp", ".tif",  ".tiff"};
constexpr std::array<const char*, 5> video_suffixes = {".mp4", ".avi", ".mov", ".mkv", ".webm"};

template <typename Suffixes>
bool ends_like(const fs::path& path, const Suffixes& suffixes) {
    auto suffix = text(path.extension());
    std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end();
}

std::vector<fs::path> files_of_folder(const fs::path& folder) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.is_regular_file() && (is_image(entry.path()) || is_video(entry.path())))
            files.push_back(entry.path());
    if (files.empty())
        throw InputError(text(folder) + ": the folder has no images or videos");
    std::sort(files.begin(), files.end());
    return files;
}

cv::Mat decoded(const std::vector<unsigned char>& content) {
    try {
        return cv::imdecode(content, cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION);
    } catch (const cv::Exception&) {  // some damaged files throw, others give an empty image
        return {};
    }
}

/// Reads an image of any file name; a rotation in its EXIF part is not applied.
std::variant<Frame, Failure> read_image(const fs::path& path) {
    std::ifstream stream(path, std::ios::binary);
    const std::vector<unsigned char> content{std::istreambuf_iterator<char>(stream), {}};
    if (content.empty())
        return Failure{path, text(path) + ": the image file is empty (0 bytes) or cannot be read"};
    Frame frame;
    frame.path = path;
    frame.image = decoded(content);
    if (frame.image.empty())
        return Failure{path, text(path) + ": not a readable image"};
    return frame;
}

}  // namespace

std::string Frame::title() const {
    const auto name = text(path.filename());
    return number ? name + " frame " + std::to_string(*number) : name;
}

FrameReader::FrameReader(const std::vector<fs::path>& sources) {
    for (const auto& source : sources) {
        if (fs::is_directory(source)) {
            const auto files = files_of_folder(source);
            files_.insert(files_.end(), files.begin(), files.end());
        } else if (fs::exists(source)) {
            files_.push_back(source);
        } else {
            throw InputError("--source " + text(source) + ": no such file or folder");
        }
    }
}

std::optional<std::variant<Frame, Failure>> FrameReader::next() {
    while (video_.isOpened() || next_file_ < files_.size()) {
        if (video_.isOpened()) {
            if (auto frame = next_of_video())
                return std::move(*frame);
            if (frames_read_ == 0)
                return Failure{files_[next_file_ - 1],
                               text(files_[next_file_ - 1]) + ": the video has no frames"};
            continue;
        }
        const auto& path = files_[next_file_++];
        if (!is_video(path))
            return read_image(path);
        frames_read_ = 0;
        if (!video_.open(path.string()))
            return Failure{path, text(path) + ": not a readable video"};
    }
    return std::nullopt;
}

std::optional<Frame> FrameReader::next_of_video() {
    Frame frame;
    if (!video_.read(frame.image) || frame.image.empty()) {
        video_.release();
        return std::nullopt;
    }
    frame.path = files_[next_file_ - 1];
    frame.image = frame.image.clone();  // the decoder uses its memory again
    frame.number = ++frames_read_;
    frame.fps = video_.get(cv::CAP_PROP_FPS);
    return frame;
}

bool is_video(const fs::path& path) {
    return ends_like(path, video_suffixes);
}

bool is_image(const fs::path& path) {
    return ends_like(path, image_suffixes);
}

}  // namespace detector
