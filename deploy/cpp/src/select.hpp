#pragma once

#include <opencv2/core.hpp>
#include <vector>

namespace detector {

/// One object: corners in pixels.
struct Detection {
    float x1 = 0, y1 = 0, x2 = 0, y2 = 0;
    float score = 0;
    int label = 0;
};

/// Which detections are wanted; defaults as `python -m detector.predict` has them.
struct Thresholds {
    float conf = 0.25F;  // least score
    double iou = 0.65;   // a box goes when a better one of its class overlaps it by more
    int max_det = 300;   // of an image
};

/// What was found in one image, best score first.
struct Found {
    std::vector<Detection> detections;
    int candidates = 0;  // boxes with a sufficient score, before NMS
};

/// Selects the objects of one image from `rows` decoded predictions of `columns` values: cx, cy, w,
/// h, objectness, class probabilities. The score is objectness times the best class; the best 1000
/// boxes (or max_det, if that is more) go through class-aware NMS. The rule is that of
/// detector/decode.py.
Found select(const float* decoded, int rows, int columns, const Thresholds& thresholds);

/// Moves boxes from pixels of the letterboxed input to those of an image, and clips them to it.
/// Each axis has its own scale, because the letterbox rounds the sides to whole pixels.
void to_image_pixels(std::vector<Detection>& detections, cv::Size image, int imgsz);

}  // namespace detector
