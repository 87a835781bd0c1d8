#pragma once

#include <memory>

#include "backend.hpp"
#include "sidecar.hpp"

namespace detector {

/// Loads an engine of TensorRT or TensorRT-RTX on the current GPU; see `open_backend`.
std::unique_ptr<Backend> open_tensorrt(const Engine& engine);

}  // namespace detector
