#include "model_info.hpp"

#include "input_error.hpp"

namespace detector {

namespace {

constexpr int largest_input = 16384;  // pixels; beyond it a number is a mistake

bool is_rgb(const std::string& convention) {
    return convention.rfind("rgb", 0) == 0;
}

ModelInfo parse(const std::filesystem::path& path, const nlohmann::json& description) {
    ModelInfo info;
    info.path = path;
    info.names = description.at("names").get<std::vector<std::string>>();
    info.imgsz = description.at("imgsz").get<int>();
    const auto convention = description.at("input_convention").get<std::string>();
    if (!is_rgb(convention) && convention.rfind("bgr", 0) != 0)
        throw InputError("input_convention '" + convention + "' must begin with bgr or rgb");
    info.rgb = is_rgb(convention);
    if (info.names.empty())
        throw InputError("names is empty");
    if (info.imgsz < 1 || info.imgsz > largest_input)
        throw InputError("imgsz=" + std::to_string(info.imgsz) + " must be 1 to " +
                         std::to_string(largest_input));
    return info;
}

}  // namespace

ModelInfo read_info(const std::filesystem::path& path, const nlohmann::json& description) {
    if (description.contains("nms"))
        throw InputError(text(path) + ": has NMS in its graph, and this program has its own: "
                                      "export it without --nms");
    try {
        return parse(path, description);
    } catch (const std::exception& error) {
        throw InputError(text(path) +
                         ": not written by detector.export, no usable names, imgsz and "
                         "input_convention (" +
                         error.what() + ")");
    }
}

std::string text(const std::filesystem::path& path) {
    return path.u8string();
}

}  // namespace detector
