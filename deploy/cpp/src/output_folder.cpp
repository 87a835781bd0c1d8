#include "output_folder.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <system_error>
#include <vector>

#include "input_error.hpp"
#include "model_info.hpp"

namespace detector {

namespace {

namespace fs = std::filesystem;

constexpr double usual_fps = 25;  // where a video does not say its own

std::string lower(std::string word) {
    std::transform(word.begin(), word.end(), word.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return word;
}

fs::path numbered(const fs::path& name, int number) {
    return number == 1 ? name : fs::path(name).concat("-" + std::to_string(number));
}

}  // namespace

OutputFolder::OutputFolder(const fs::path& wanted) {
    for (int number = 1;; ++number) {
        path_ = numbered(wanted, number);
        std::error_code error;
        if (fs::create_directories(path_, error))
            return;
        if (error)
            throw InputError("--out " + text(path_) + ": cannot be created: " + error.message());
    }
}

void OutputFolder::write(const Frame& frame, const cv::Mat& drawing) {
    if (frame.number)
        write_video(frame, drawing);
    else
        write_image(frame, drawing);
}

fs::path OutputFolder::free_name(const fs::path& source, const std::string& suffix) {
    for (int number = 1;; ++number) {
        auto name = numbered(source.stem(), number);
        name += suffix;
        if (taken_.insert(lower(text(name))).second)
            return path_ / name;
    }
}

void OutputFolder::write_image(const Frame& frame, const cv::Mat& drawing) {
    const auto suffix = is_image(frame.path) ? lower(frame.path.extension().string()) : ".png";
    const auto target = free_name(frame.path, suffix);
    std::vector<unsigned char> encoded;
    if (!cv::imencode(suffix, drawing, encoded))
        throw std::runtime_error(text(target) + ": the drawing cannot be encoded");
    std::ofstream stream(target, std::ios::binary);
    stream.write(reinterpret_cast<const char*>(encoded.data()),
                 static_cast<std::streamsize>(encoded.size()));
    stream.close();
    if (!stream)
        throw std::runtime_error(text(target) + ": cannot be written");
}

void OutputFolder::write_video(const Frame& frame, const cv::Mat& drawing) {
    if (frame.number == 1) {
        const auto target = free_name(frame.path, ".mp4");
        const double fps = frame.fps > 0 ? frame.fps : usual_fps;
        video_size_ = drawing.size();
        video_.release();
        video_.open(target.string(), cv::VideoWriter::fourcc('m', 'p', '4', 'v'), fps, video_size_);
        if (!video_.isOpened())
            throw std::runtime_error(text(target) + ": this OpenCV cannot write mp4v video");
    }
    cv::Mat fitted = drawing;
    if (drawing.size() != video_size_)  // a stream may change its size
        cv::resize(drawing, fitted, video_size_);
    video_.write(fitted);
}

}  // namespace detector
