#include "detector.hpp"

#include <algorithm>
#include <chrono>

#include "letterbox.hpp"

namespace detector {

namespace {

/// Milliseconds since it was made or last asked.
class Watch {
  public:
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const std::chrono::duration<double, std::milli> passed = now - started_;
        started_ = now;
        return passed.count();
    }

  private:
    std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace

Detector::Detector(std::unique_ptr<Backend> backend, const Thresholds& thresholds)
    : backend_(std::move(backend)), thresholds_(thresholds) {
    backend_->run(input_, fill({}));
}

std::vector<Found> Detector::detect(const std::vector<cv::Mat>& images) {
    Watch watch;
    const int count = fill(images);
    timing_.letterbox += watch.lap();
    const auto decoded = backend_->run(input_, count);
    timing_.network += watch.lap();
    std::vector<Found> found;
    for (std::size_t i = 0; i < images.size(); ++i) {
        found.push_back(
            select(decoded.image(static_cast<int>(i)), decoded.rows, decoded.columns, thresholds_));
        to_image_pixels(found.back().detections, images[i].size(), info().imgsz);
    }
    timing_.boxes += watch.lap();
    return found;
}

int Detector::fill(const std::vector<cv::Mat>& images) {
    const int count = std::max(static_cast<int>(images.size()), info().min_batch);
    const auto side = static_cast<std::size_t>(info().imgsz);
    const auto image_floats = 3 * side * side;
    input_.resize(static_cast<std::size_t>(count) * image_floats);
    for (std::size_t i = 0; i < images.size(); ++i)
        letterbox(images[i], info().imgsz, info().rgb, input_.data() + i * image_floats);
    return count;
}

}  // namespace detector
