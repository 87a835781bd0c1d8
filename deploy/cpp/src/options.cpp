#include "options.hpp"

#include <functional>
#include <locale>
#include <map>
#include <sstream>

#include "input_error.hpp"

namespace detector {

namespace {

constexpr int largest_count = 1000000;

/// The arguments, one after the other.
class Arguments {
  public:
    explicit Arguments(const std::vector<std::string>& all) {
        for (const auto& argument : all) {
            const auto equals = argument.find('=');
            if (argument.rfind("--", 0) == 0 && equals != std::string::npos) {
                words_.push_back(argument.substr(0, equals));
                words_.push_back(argument.substr(equals + 1));
            } else {
                words_.push_back(argument);
            }
        }
    }

    bool done() const { return next_ == words_.size(); }
    const std::string& take() { return words_[next_++]; }

    bool value_follows() const { return !done() && words_[next_].rfind('-', 0) != 0; }

    const std::string& value_of(const std::string& option) {
        if (done() || words_[next_].rfind("--", 0) == 0)
            throw InputError(option + " needs a value");
        return take();
    }

  private:
    std::vector<std::string> words_;
    std::size_t next_ = 0;
};

template <typename Number>
Number number_in(const std::string& option, const std::string& value, Number low, Number high) {
    std::istringstream stream(value);
    stream.imbue(std::locale::classic());
    Number number{};
    stream >> number;
    if (stream.fail() || !stream.eof() || !(number >= low && number <= high)) {
        std::ostringstream message;
        message.imbue(std::locale::classic());
        message << option << '=' << value << " must be " << low << " to " << high;
        throw InputError(message.str());
    }
    return number;
}

using Reader = std::function<void(Options&, Arguments&, const std::string& option)>;

void read_sources(Options& options, Arguments& arguments, const std::string& option) {
    options.sources.emplace_back(arguments.value_of(option));
    while (arguments.value_follows())
        options.sources.emplace_back(arguments.take());
}

Reader count_option(int Options::*member, int low) {
    return [=](Options& options, Arguments& arguments, const std::string& option) {
        options.*member = number_in(option, arguments.value_of(option), low, largest_count);
    };
}

Reader file_option(std::filesystem::path Options::*member) {
    return [=](Options& options, Arguments& arguments, const std::string& option) {
        options.*member = arguments.value_of(option);
    };
}

Reader flag_option(bool Options::*member, bool value) {
    return [=](Options& options, Arguments&, const std::string&) { options.*member = value; };
}

const std::map<std::string, Reader>& readers() {
    static const std::map<std::string, Reader> all = {
        {"--weights", file_option(&Options::weights)},
        {"--source", read_sources},
        {"-i", read_sources},
        {"--conf",
         [](Options& options, Arguments& arguments, const std::string& option) {
             options.thresholds.conf = number_in(option, arguments.value_of(option), 0.0F, 1.0F);
         }},
        {"--iou",
         [](Options& options, Arguments& arguments, const std::string& option) {
             options.thresholds.iou = number_in(option, arguments.value_of(option), 0.0, 1.0);
         }},
        {"--max-det",
         [](Options& options, Arguments& arguments, const std::string& option) {
             options.thresholds.max_det =
                 number_in(option, arguments.value_of(option), 1, largest_count);
         }},
        {"--batch", count_option(&Options::batch, 1)},
        {"--threads", count_option(&Options::threads, 0)},
        {"--out", file_option(&Options::out)},
        {"--no-images", flag_option(&Options::pictures, false)},
        {"--json", flag_option(&Options::json, true)},
        {"--help", flag_option(&Options::help, true)},
        {"-h", flag_option(&Options::help, true)},
    };
    return all;
}

[[noreturn]] void refuse(const std::string& argument) {
    std::string known;
    for (const auto& [name, reader] : readers())
        known += (known.empty() ? "" : ", ") + name;
    throw InputError(argument + " is not an option; there are: " + known);
}

}  // namespace

Options parse_options(const std::vector<std::string>& words) {
    Options options;
    Arguments arguments(words);
    while (!arguments.done()) {
        const auto word = arguments.take();
        const auto reader = readers().find(word);
        if (reader != readers().end())
            reader->second(options, arguments, word);
        else if (options.weights.empty() && word.rfind('-', 0) != 0)
            options.weights = word;
        else
            refuse(word);
    }
    if (options.help)
        return options;
    if (options.weights.empty())
        throw InputError("--weights is missing: an .onnx or .engine file of detector.export");
    if (options.sources.empty())
        throw InputError("--source is missing: images, videos or folders");
    return options;
}

std::string usage() {
    return R"(usage: detect MODEL -i SOURCE [SOURCE ...] [options]

Finds objects in images and videos by a detector that detector.export wrote.

  MODEL, --weights FILE  .onnx or .engine
  -i, --source ...       images, videos, folders
  --conf 0.25            least score, 0 to 1
  --iou 0.65             boxes of a class that overlap by more than this are one object, 0 to 1
  --max-det 300          most objects of an image
  --batch 1              images at once; more than 1 needs a file exported with --dynamic
  --threads 0            CPU threads; 0: as the runtime likes
  --out FOLDER           new folder for the drawings (default: detections, detections-2, ...)
  --no-images            draw nothing
  --json                 one JSON object on standard output, all other lines on standard error

Exit codes: 0 done, 1 a file could not be read or a library failed, 2 wrong usage or input.

  detect best.onnx -i photos/ --conf 0.4
  detect best.onnx -i clip.mp4 --batch 8 --out clip
)";
}

}  // namespace detector
