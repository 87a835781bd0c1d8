#include "letterbox.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <opencv2/imgproc.hpp>

namespace detector {

namespace {

constexpr float gray = 114.0F;

/// Rounds halves to the even number, like Python.
int rounded_side(double side) {
    return std::max(1, static_cast<int>(std::nearbyint(side)));
}

cv::Mat fitted(const cv::Mat& image, cv::Size size) {
    if (image.size() == size)
        return image;
    cv::Mat small;
    cv::resize(image, small, size, 0, 0, cv::INTER_LINEAR);
    return small;
}

}  // namespace

cv::Size fitted_size(cv::Size image, int imgsz) {
    const double side = imgsz;
    const double ratio = std::min(side / image.height, side / image.width);
    return {rounded_side(image.width * ratio), rounded_side(image.height * ratio)};
}

void letterbox(const cv::Mat& image, int imgsz, bool rgb, float* planes) {
    const cv::Mat small = fitted(image, fitted_size(image.size(), imgsz));
    const auto plane = static_cast<std::ptrdiff_t>(imgsz) * imgsz;
    const std::array<float*, 3> first = {planes, planes + plane, planes + 2 * plane};
    for (int y = 0; y < imgsz; ++y) {
        const auto start = static_cast<std::ptrdiff_t>(y) * imgsz;
        const int filled = y < small.rows ? small.cols : 0;
        const auto* pixels = filled > 0 ? small.ptr<cv::Vec3b>(y) : nullptr;
        for (int channel = 0; channel < 3; ++channel) {
            float* const row = first[static_cast<std::size_t>(rgb ? 2 - channel : channel)] + start;
            for (int x = 0; x < filled; ++x)
                row[x] = pixels[x][channel];
            std::fill(row + filled, row + imgsz, gray);
        }
    }
}

}  // namespace detector
