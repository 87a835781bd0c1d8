#pragma once

#include <opencv2/core.hpp>

namespace detector {

/// Sides of an image of size `image` that is fitted into imgsz x imgsz, pixels.
cv::Size fitted_size(cv::Size image, int imgsz);

/// Fits a BGR image (uint8) into the top left of a gray square and writes it to `planes`:
/// 3 x imgsz x imgsz floats, 0 to 255, the first plane blue, or red with `rgb`.
void letterbox(const cv::Mat& image, int imgsz, bool rgb, float* planes);

}  // namespace detector
