#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "model_info.hpp"

namespace detector {

/// Decoded predictions (images, rows, columns) in a back end's memory, valid until its next run.
struct Decoded {
    const float* data = nullptr;
    int rows = 0;     // predictions of one image
    int columns = 0;  // cx, cy, w, h in input pixels, objectness, class probabilities

    const float* image(int index) const {
        return data + static_cast<std::ptrdiff_t>(index) * rows * columns;
    }
};

/// A network that is ready to run: letterboxed pixels in, decoded predictions out.
class Backend {
  public:
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    const ModelInfo& info() const { return info_; }

    /// Runs `count` images, (count, 3, imgsz, imgsz) floats 0 to 255 in the file's channel order;
    /// `count` lies between min_batch and max_batch. Throws std::runtime_error.
    virtual Decoded run(const std::vector<float>& images, int count) = 0;

  protected:
    explicit Backend(ModelInfo info) : info_(std::move(info)) {}

    /// Checks the shape that a run returned. Throws InputError if it is not (count, N, 5 + C).
    Decoded checked(const float* data, const std::vector<std::int64_t>& shape, int count) const;

  private:
    ModelInfo info_;
};

/// Loads an .onnx or .engine file; `threads` of the CPU, 0 for the runtime's own choice.
/// Throws InputError: the file is missing, damaged, of an unknown kind, not for this machine, or
/// its runtime was left out of this build.
std::unique_ptr<Backend> open_backend(const std::filesystem::path& path, int threads);

}  // namespace detector
