// write_refusals FOLDER: the damaged checkpoints of src/model/fixtures/refusals.h, each in a folder of its
// own below FOLDER, and for each one JSON line {"name": .., "path": .., "words": [..]}. Run in the
// repository's root.
#include <boost/json.hpp>
#include <filesystem>
#include <iostream>

#include "model/fixtures/refusals.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: write_refusals FOLDER\n";
    return 2;
  }
  for (const auto& refusal : millrace::model::fixtures::refusals()) {
    const auto folder = std::filesystem::path(argv[1]) / refusal.name;
    std::filesystem::create_directories(folder);
    const auto path = refusal.write(folder);
    if (!path) {
      std::cerr << refusal.name << ": " << path.error().to_string() << "\n";
      return 1;
    }
    std::cout << boost::json::serialize(boost::json::object{
                     {"name", refusal.name},
                     {"path", path->string()},
                     {"words", boost::json::array(refusal.words.begin(), refusal.words.end())}})
              << "\n";
  }
  return 0;
}
