// The normaliser steps of a tokenizer: NFC, and the replacements of SentencePiece-style vocabularies.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "model/tokenizer.h"

namespace millrace::model::internal {

// True if NFC would leave the text as it is and a glance at each character's class shows it (most text).
bool is_nfc_quick(std::string_view text);
// The text in NFC. Linear but for the sorting of runs of combining marks (n log n). `text` is valid UTF-8.
std::string to_nfc(std::string_view text);

// Applies the steps; returns `text` itself where nothing changes, else a view into `storage`. Fails with
// resource_exhausted where the steps would blow the text up beyond 16 times its size plus 1 MiB.
Expected<std::string_view> normalize(std::span<const NormalizerStep> steps, std::string_view text,
                                     std::string& storage);

}  // namespace millrace::model::internal
