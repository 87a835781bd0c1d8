#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace detector {

/// What an exported file says about itself.
struct ModelInfo {
    std::filesystem::path path;
    std::vector<std::string> names;  // of the classes, in the order of the output columns
    int imgsz = 0;                   // side of the square input, pixels
    bool rgb = false;                // the first channel is red; else blue, as OpenCV reads images
    int min_batch = 1;
    int max_batch = 1;  // images that the file takes at once

    /// Columns of the output: cx, cy, w, h, objectness and one for each class.
    int columns() const { return 5 + static_cast<int>(names.size()); }
};

/// Reads names, imgsz and input_convention of a sidecar or of an ONNX file's metadata.
/// Throws InputError naming the key that is missing or wrong.
ModelInfo read_info(const std::filesystem::path& path, const nlohmann::json& description);

/// The text of a path for messages and JSON, UTF-8.
std::string text(const std::filesystem::path& path);

}  // namespace detector
