#pragma once

#include <memory>

#include "backend.hpp"

namespace detector {

/// Loads an ONNX file for the CPU; see `open_backend`.
std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& path, int threads);

}  // namespace detector
