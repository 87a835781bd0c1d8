#include "select.hpp"

#include <algorithm>
#include <cstddef>

#include "letterbox.hpp"

namespace detector {

namespace {

constexpr int most_candidates = 1000;  // best boxes of an image that enter NMS
constexpr int first_class = 5;         // column

Detection detection_of(const float* row, int columns) {
    const float* const best = std::max_element(row + first_class, row + columns);
    const float half_width = row[2] / 2, half_height = row[3] / 2;
    Detection detection;
    detection.x1 = row[0] - half_width;
    detection.y1 = row[1] - half_height;
    detection.x2 = row[0] + half_width;
    detection.y2 = row[1] + half_height;
    detection.score = *best * row[4];
    detection.label = static_cast<int>(best - row) - first_class;
    return detection;
}

/// All boxes with at least the score `conf`, best first; equal scores stay in their order.
std::vector<Detection> sure_boxes(const float* decoded, int rows, int columns, float conf) {
    std::vector<Detection> sure;
    for (int index = 0; index < rows; ++index) {
        const auto detection =
            detection_of(decoded + static_cast<std::ptrdiff_t>(index) * columns, columns);
        if (detection.score >= conf)
            sure.push_back(detection);
    }
    std::stable_sort(sure.begin(), sure.end(),
                     [](const Detection& a, const Detection& b) { return a.score > b.score; });
    return sure;
}

/// A box as NMS sees it: an untrained network's exp() can be infinite, so corners have a limit.
struct Area {
    explicit Area(const Detection& box)
        : x1(limited(box.x1)),
          y1(limited(box.y1)),
          x2(limited(box.x2)),
          y2(limited(box.y2)),
          pixels((x2 - x1) * (y2 - y1)),
          label(box.label) {}

    static double limited(double value) { return std::clamp(value, -1e7, 1e7); }

    double x1, y1, x2, y2;
    double pixels;
    int label;
};

double iou_of(const Area& a, const Area& b) {
    const double width = std::max(0.0, std::min(a.x2, b.x2) - std::max(a.x1, b.x1));
    const double height = std::max(0.0, std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
    const double shared = width * height;
    return shared / (a.pixels + b.pixels - shared);
}

/// Class-aware NMS of boxes in the order of their scores; at most `max_det` are kept.
std::vector<Detection> suppressed(const std::vector<Detection>& boxes, double iou, int max_det) {
    std::vector<Detection> kept;
    std::vector<Area> areas;  // of those kept
    for (const auto& box : boxes) {
        if (static_cast<int>(kept.size()) == max_det)
            break;
        const Area area(box);
        const bool hidden = std::any_of(areas.begin(), areas.end(), [&](const Area& better) {
            return better.label == area.label && iou_of(better, area) > iou;
        });
        if (hidden)
            continue;
        kept.push_back(box);
        areas.push_back(area);
    }
    return kept;
}

float moved(float value, double scale, int limit) {
    return static_cast<float>(std::clamp(value * scale, 0.0, static_cast<double>(limit)));
}

}  // namespace

Found select(const float* decoded, int rows, int columns, const Thresholds& thresholds) {
    auto sure = sure_boxes(decoded, rows, columns, thresholds.conf);
    Found found;
    found.candidates = static_cast<int>(sure.size());
    const auto most = static_cast<std::size_t>(std::max(most_candidates, thresholds.max_det));
    sure.resize(std::min(sure.size(), most));
    found.detections = suppressed(sure, thresholds.iou, thresholds.max_det);
    return found;
}

void to_image_pixels(std::vector<Detection>& detections, cv::Size image, int imgsz) {
    const auto fitted = fitted_size(image, imgsz);
    const double x_scale = static_cast<double>(image.width) / fitted.width;
    const double y_scale = static_cast<double>(image.height) / fitted.height;
    for (auto& box : detections) {
        box.x1 = moved(box.x1, x_scale, image.width);
        box.x2 = moved(box.x2, x_scale, image.width);
        box.y1 = moved(box.y1, y_scale, image.height);
        box.y2 = moved(box.y2, y_scale, image.height);
    }
}

}  // namespace detector
