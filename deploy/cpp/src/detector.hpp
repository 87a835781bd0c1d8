#pragma once

#include <memory>
#include <opencv2/core.hpp>
#include <vector>

#include "backend.hpp"
#include "select.hpp"

namespace detector {

/// Milliseconds of the three steps, summed over what was run.
struct Timing {
    double letterbox = 0;
    double network = 0;
    double boxes = 0;  // NMS and what follows

    double total() const { return letterbox + network + boxes; }
};

/// Finds objects in images: letterbox, network, selection of the boxes.
class Detector {
  public:
    /// Runs the network once, because the first run is slow.
    Detector(std::unique_ptr<Backend> backend, const Thresholds& thresholds);

    const ModelInfo& info() const { return backend_->info(); }

    /// Time spent in `detect` up to now.
    const Timing& timing() const { return timing_; }

    /// What is in each BGR image (uint8), boxes in its pixels; at most info().max_batch images.
    std::vector<Found> detect(const std::vector<cv::Mat>& images);

  private:
    /// Letterboxes the images into `input_`; returns how many the network has to run: a file for a
    /// fixed batch gets black images behind them.
    int fill(const std::vector<cv::Mat>& images);

    std::unique_ptr<Backend> backend_;
    Thresholds thresholds_;
    Timing timing_;
    std::vector<float> input_;
};

}  // namespace detector
