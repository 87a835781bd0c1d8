// Finds objects in images and videos by an exported detector; see README.md.

#include <exception>
#include <iostream>
#include <opencv2/core/utility.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "detector.hpp"
#include "draw.hpp"
#include "input_error.hpp"
#include "options.hpp"
#include "output_folder.hpp"
#include "report.hpp"
#include "sources.hpp"

namespace {

using namespace detector;

void check_batch(const Options& options, const ModelInfo& info) {
    if (options.batch <= info.max_batch)
        return;
    const std::string allowed =
        info.max_batch == 1 ? "1" : "1 to " + std::to_string(info.max_batch);
    throw InputError("--batch=" + std::to_string(options.batch) + " must be " + allowed + ": " +
                     text(info.path) + " takes no more at once; export it with --dynamic");
}

/// Finds, draws and reports the objects of pictures as they come.
class Run {
  public:
    Run(Detector& detector, Report& report, std::optional<OutputFolder>& folder)
        : detector_(detector), report_(report), folder_(folder) {}

    void operator()(const std::vector<Frame>& frames) {
        if (frames.empty())
            return;
        std::vector<cv::Mat> images;
        for (const auto& frame : frames)
            images.push_back(frame.image);
        const double before = detector_.timing().total();
        const auto found = detector_.detect(images);
        const double each =
            (detector_.timing().total() - before) / static_cast<double>(frames.size());
        for (std::size_t i = 0; i < frames.size(); ++i)
            finish(frames[i], found[i], each);
    }

  private:
    void finish(const Frame& frame, const Found& found, double milliseconds) {
        if (folder_)
            folder_->write(frame, drawn(frame.image, found.detections, detector_.info().names));
        report_.add(frame, found, milliseconds, folder_.has_value());
    }

    Detector& detector_;
    Report& report_;
    std::optional<OutputFolder>& folder_;
};

/// Handles every picture in batches of `size`.
void run_all(FrameReader& reader, std::size_t size, Run& run, Report& report) {
    std::vector<Frame> batch;
    while (auto next = reader.next()) {
        if (const auto* failure = std::get_if<Failure>(&*next)) {
            std::cerr << "error: " << failure->reason << std::endl;
            report.add(*failure);
            continue;
        }
        batch.push_back(std::move(std::get<Frame>(*next)));
        if (batch.size() == size) {
            run(batch);
            batch.clear();
        }
    }
    run(batch);
}

int find_objects(const Options& options) {
    namespace logging = cv::utils::logging;
    logging::setLogLevel(logging::LOG_LEVEL_SILENT);  // every failure has a line of ours
    if (options.threads > 0)
        cv::setNumThreads(options.threads);
    FrameReader reader(options.sources);
    auto backend = open_backend(options.weights, options.threads);
    check_batch(options, backend->info());
    Detector detector(std::move(backend), options.thresholds);
    std::optional<OutputFolder> folder;
    if (options.pictures)
        folder.emplace(options.out.empty() ? "detections" : options.out);
    Report report(options.json ? std::cerr : std::cout, detector.info().names);
    Run run(detector, report, folder);
    run_all(reader, static_cast<std::size_t>(options.batch), run, report);
    report.finish(detector.timing(), folder ? folder->path() : std::filesystem::path());
    if (options.json)
        std::cout << report.content().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                  << std::endl;
    return report.exit_code();
}

int fail(const std::exception& error, int code) {
    std::cerr << "error: " << error.what() << std::endl;
    return code;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const auto options = parse_options({argv + 1, argv + argc});
        if (options.help) {
            std::cout << usage();
            return 0;
        }
        return find_objects(options);
    } catch (const InputError& error) {
        return fail(error, 2);
    } catch (const std::exception& error) {
        return fail(error, 1);
    }
}
