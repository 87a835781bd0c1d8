#pragma once

#include <opencv2/core.hpp>
#include <string>
#include <vector>

#include "select.hpp"

namespace detector {

/// A copy of a BGR image with boxes, labelled `name 0.87`, the best score on top. Lines and text
/// grow with the image; labels stay inside it.
cv::Mat drawn(const cv::Mat& image, const std::vector<Detection>& detections,
              const std::vector<std::string>& names);

}  // namespace detector
