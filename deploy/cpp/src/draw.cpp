#include "draw.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <opencv2/imgproc.hpp>

namespace detector {

namespace {

constexpr int font = cv::FONT_HERSHEY_SIMPLEX;

// RGB, told apart by colour-blind people too. Source: Okabe and Ito 2008 (the first seven), and
// Paul Tol, "Colour schemes" 2021, scheme "muted" (the rest).
constexpr std::array<unsigned, 16> palette = {
    0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7, 0x88CCEE,
    0xCC6677, 0x117733, 0xDDCC77, 0x332288, 0xAA4499, 0x44AA99, 0x999933, 0x882255};

cv::Scalar class_colour(int label) {
    const auto code = palette[static_cast<std::size_t>(label) % palette.size()];
    return {static_cast<double>(code & 0xff), static_cast<double>(code >> 8 & 0xff),
            static_cast<double>(code >> 16)};
}

/// Black or white, whichever reads better. Source: WCAG 2.1, relative luminance.
cv::Scalar text_colour(const cv::Scalar& background) {
    const auto linear = [](double value) { return std::pow(value / 255, 2.2); };
    const double luminance = 0.0722 * linear(background[0]) + 0.7152 * linear(background[1]) +
                             0.2126 * linear(background[2]);
    return luminance > 0.179 ? cv::Scalar(0, 0, 0) : cv::Scalar(255, 255, 255);
}

/// Sizes in pixels that follow the size of the image.
struct Style {
    explicit Style(cv::Size image)
        : line(std::max(1, (image.width + image.height) / 640)),
          scale(std::clamp((image.width + image.height) / 2600.0, 0.4, 2.5)),
          thickness(std::max(1, static_cast<int>(std::lround(scale)))),
          margin(std::max(2, static_cast<int>(std::lround(4 * scale)))) {}

    int line;
    double scale;  // of the font
    int thickness;
    int margin;
};

std::string label_of(const Detection& detection, const std::vector<std::string>& names) {
    std::array<char, 16> score{};
    std::snprintf(score.data(), score.size(), " %.2f", static_cast<double>(detection.score));
    return names[static_cast<std::size_t>(detection.label)] + score.data();
}

/// Writes a label on a plate above the box, or at its top where the image ends.
void write_label(cv::Mat& canvas, const cv::Rect& box, const std::string& label,
                 const cv::Scalar& colour, const Style& style) {
    int below = 0;
    const auto letters = cv::getTextSize(label, font, style.scale, style.thickness, &below);
    const cv::Size plate(letters.width + 2 * style.margin, letters.height + below + style.margin);
    const int x = std::clamp(box.x, 0, std::max(0, canvas.cols - plate.width));
    const int y = std::clamp(box.y - plate.height, 0, std::max(0, canvas.rows - plate.height));
    cv::rectangle(canvas, cv::Rect(cv::Point(x, y), plate), colour, cv::FILLED);
    cv::putText(canvas, label, {x + style.margin, y + style.margin / 2 + letters.height}, font,
                style.scale, text_colour(colour), style.thickness, cv::LINE_AA);
}

cv::Rect rectangle_of(const Detection& box) {
    const auto pixel = [](float value) { return std::isfinite(value) ? cvRound(value) : 0; };
    return {cv::Point(pixel(box.x1), pixel(box.y1)), cv::Point(pixel(box.x2), pixel(box.y2))};
}

}  // namespace

cv::Mat drawn(const cv::Mat& image, const std::vector<Detection>& detections,
              const std::vector<std::string>& names) {
    cv::Mat canvas = image.clone();
    const Style style(image.size());
    for (auto box = detections.rbegin(); box != detections.rend(); ++box)
        cv::rectangle(canvas, rectangle_of(*box), class_colour(box->label), style.line);
    for (auto box = detections.rbegin(); box != detections.rend(); ++box)
        write_label(canvas, rectangle_of(*box), label_of(*box, names), class_colour(box->label),
                    style);
    return canvas;
}

}  // namespace detector
