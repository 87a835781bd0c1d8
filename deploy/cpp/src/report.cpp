#include "report.hpp"

#include <array>
#include <cstdio>
#include <map>

#include "model_info.hpp"

namespace detector {

namespace {

using nlohmann::json;

template <typename... Values>
std::string format(const char* pattern, Values... values) {
    std::array<char, 256> line{};
    std::snprintf(line.data(), line.size(), pattern, values...);
    return line.data();
}

/// E.g. `3 RBC, 1 WBC`, by class.
std::string summary(const std::vector<Detection>& detections,
                    const std::vector<std::string>& names) {
    std::map<int, int> counts;
    for (const auto& detection : detections)
        ++counts[detection.label];
    std::string words;
    for (const auto& [label, count] : counts)
        words += (words.empty() ? "" : ", ") + std::to_string(count) + " " +
                 names[static_cast<std::size_t>(label)];
    return words.empty() ? "nothing" : words;
}

/// The line that the official C++ demo of YOLOX prints: class, score, corner and sides.
std::string line_of(const Detection& box) {
    return format("%d = %.5f at %.2f %.2f %.2f x %.2f", box.label, double{box.score},
                  double{box.x1}, double{box.y1}, double{box.x2} - double{box.x1},
                  double{box.y2} - double{box.y1});
}

json json_of(const Detection& box, const std::vector<std::string>& names) {
    return {{"label", box.label},
            {"name", names[static_cast<std::size_t>(box.label)]},
            {"score", box.score},
            {"box", {box.x1, box.y1, box.x2, box.y2}}};
}

json json_of(const Frame& frame, const Found& found, double milliseconds,
             const std::vector<std::string>& names) {
    auto detections = json::array();
    for (const auto& box : found.detections)
        detections.push_back(json_of(box, names));
    json image = {{"path", text(frame.path)},
                  {"height", frame.image.rows},
                  {"width", frame.image.cols},
                  {"milliseconds", milliseconds},
                  {"detections", std::move(detections)}};
    if (frame.number)
        image["frame"] = *frame.number;
    return image;
}

}  // namespace

void Report::add(const Frame& frame, const Found& found, double milliseconds, bool saved) {
    lines_ << frame.title() << ": " << summary(found.detections, names_) << '\n'
           << "blob image\n"
           << format("%.2fms\n", milliseconds)
           << format("num of boxes before nms: %d\n", found.candidates)
           << format("num of boxes: %zu\n", found.detections.size());
    for (const auto& box : found.detections)
        lines_ << line_of(box) << '\n';
    if (saved)
        lines_ << "save vis file\n";
    objects_ += found.detections.size();
    content_["images"].push_back(json_of(frame, found, milliseconds, names_));
}

void Report::add(const Failure& failure) {
    content_["failed"].push_back({{"path", text(failure.path)}, {"reason", failure.reason}});
}

void Report::finish(const Timing& timing, const std::filesystem::path& directory) {
    const auto images = content_["images"].size();
    lines_ << format("%zu images, %zu objects, %zu failed", images, objects_,
                     content_["failed"].size());
    json each = nullptr;
    if (images > 0) {
        const auto count = static_cast<double>(images);
        each = {{"letterbox", timing.letterbox / count},
                {"network", timing.network / count},
                {"boxes", timing.boxes / count},
                {"total", timing.total() / count}};
        lines_ << format(", %.2f ms an image (letterbox %.2f, network %.2f, boxes %.2f)",
                         timing.total() / count, timing.letterbox / count, timing.network / count,
                         timing.boxes / count);
    }
    if (!directory.empty())
        lines_ << "; files are in " << text(directory);
    lines_ << std::endl;
    content_["milliseconds"] = each;
    content_["directory"] = directory.empty() ? json(nullptr) : json(text(directory));
}

int Report::exit_code() const {
    if (content_["failed"].empty())
        return 0;
    return content_["images"].empty() ? 2 : 1;
}

}  // namespace detector
