#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "detector.hpp"
#include "sources.hpp"

namespace detector {

/// Prints what was found, and collects it for `--json`.
class Report {
  public:
    Report(std::ostream& lines, const std::vector<std::string>& names)
        : lines_(lines), names_(names) {}

    /// Prints the lines of one image; `milliseconds` from letterbox to boxes.
    void add(const Frame& frame, const Found& found, double milliseconds, bool saved);
    void add(const Failure& failure);

    /// Prints the closing line; `directory` is empty where nothing was drawn.
    void finish(const Timing& timing, const std::filesystem::path& directory);

    const nlohmann::json& content() const { return content_; }

    /// 0: all files were read, 1: some, 2: none.
    int exit_code() const;

  private:
    nlohmann::json content_ = {{"images", nlohmann::json::array()},
                               {"failed", nlohmann::json::array()}};
    std::ostream& lines_;
    std::vector<std::string> names_;
    std::size_t objects_ = 0;
};

}  // namespace detector
