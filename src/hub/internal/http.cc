#include "hub/internal/http.h"

#include <curl/curl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <mutex>

namespace millrace::hub {
namespace {

struct CurlDelete {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
using Curl = std::unique_ptr<CURL, CurlDelete>;

// One transfer: where its bytes go, and why it was stopped if it was.
struct Transfer {
  CURL* curl = nullptr;
  std::string* text = nullptr;  // either this
  std::FILE* file = nullptr;    // or this
  uint64_t offset = 0;          // of the file when the transfer began
  uint64_t written = 0;
  uint64_t limit = 0;  // bytes, of the whole
  bool over_limit = false, stopped = false, write_failed = false;
  const std::function<bool(uint64_t)>* on_bytes = nullptr;
};

size_t receive(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const size_t bytes = size * count;
  long status = 0;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
  if (transfer.file && status != 200 && status != 206) return bytes;  // an error's page is not the file
  if (transfer.file && status == 200 && transfer.offset > 0) {  // the range was ignored: from the beginning
    if (std::fseek(transfer.file, 0, SEEK_SET) != 0 || ftruncate(fileno(transfer.file), 0) != 0) return 0;
    transfer.offset = 0;
  }
  if (transfer.offset + transfer.written + bytes > transfer.limit) {
    transfer.over_limit = true;
    return 0;
  }
  if (transfer.text) {
    transfer.text->append(data, bytes);
  } else if (std::fwrite(data, 1, bytes, transfer.file) != bytes) {
    transfer.write_failed = true;
    return 0;
  }
  transfer.written += bytes;
  return bytes;
}

int progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (!transfer.on_bytes || !*transfer.on_bytes) return 0;
  if ((*transfer.on_bytes)(transfer.offset + transfer.written)) return 0;
  transfer.stopped = true;
  return 1;
}

Curl make_curl(const std::string& url, const std::string& token, Transfer& transfer) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  Curl curl(curl_easy_init());
  if (!curl) return curl;
  CURL* c = curl.get();
  transfer.curl = c;
  curl_easy_setopt(c, CURLOPT_URL, url.c_str());
  curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(c, CURLOPT_MAXREDIRS, 5L);
  curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(c, CURLOPT_USERAGENT, "millrace");
  curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 20L);
  curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);  // bytes a second, for
  curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 60L);  // seconds: then the connection counts as broken
  curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, receive);
  curl_easy_setopt(c, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, progress);
  curl_easy_setopt(c, CURLOPT_XFERINFODATA, &transfer);
  curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
  if (!token.empty()) {  // curl keeps it from hosts that a redirect leads to
    curl_easy_setopt(c, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, token.c_str());
  }
  return curl;
}

Expected<void> outcome(CURLcode code, Transfer& transfer, const std::string& url) {
  if (transfer.stopped) return fail(Code::cancelled, "stopped");
  if (transfer.over_limit)
    return fail(Code::data_loss,
                fmt::format("{} sends more than the expected {} bytes", url, transfer.limit));
  if (transfer.write_failed)
    return fail(Code::resource_exhausted, "cannot write what is downloaded: is the disk full?");
  long status = 0;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
  if (status == 401)
    return fail(Code::unauthenticated, fmt::format("{} asks for a token: set HF_TOKEN", url));
  if (status == 403)
    return fail(
        Code::permission_denied,
        fmt::format("{} refuses access (403): is HF_TOKEN set, and the model's licence accepted?", url));
  if (status == 404) return fail(Code::not_found, fmt::format("{} does not exist (404)", url));
  if (status == 429 || status >= 500)
    return fail(Code::unavailable, fmt::format("{} answers {}", url, status));
  if (code == CURLE_TOO_MANY_REDIRECTS) return invalid(fmt::format("{} redirects more than 5 times", url));
  if (code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_URL_MALFORMAT)
    return invalid(fmt::format("{}: {}", url, curl_easy_strerror(code)));
  if (code != CURLE_OK) return fail(Code::unavailable, fmt::format("{}: {}", url, curl_easy_strerror(code)));
  if (status != 200 && status != 206) return invalid(fmt::format("{} answers {}", url, status));
  return {};
}

}  // namespace

Expected<std::string> http_get(const std::string& url, const std::string& token, size_t max_bytes) {
  std::string text;
  Transfer transfer;
  transfer.text = &text;
  transfer.limit = max_bytes;
  const Curl curl = make_curl(url, token, transfer);
  if (!curl) return fail(Code::internal, "libcurl cannot start");
  MR_TRY(outcome(curl_easy_perform(curl.get()), transfer, url));
  return text;
}

Expected<void> http_get_file(const std::string& url, const std::string& token,
                             const std::filesystem::path& part, uint64_t size,
                             const std::function<bool(uint64_t)>& on_bytes) {
  std::error_code error;
  uint64_t have = std::filesystem::exists(part, error) ? std::filesystem::file_size(part, error) : 0;
  if (error || have > size) {
    std::filesystem::remove(part, error);
    have = 0;
  }
  if (have == size && size > 0) return {};
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
      std::fopen(part.c_str(), have > 0 ? "r+b" : "wb"), std::fclose);
  if (!file || std::fseek(file.get(), 0, SEEK_END) != 0)
    return fail(Code::permission_denied, fmt::format("cannot write {}", part.string()));
  Transfer transfer;
  transfer.file = file.get();
  transfer.offset = have;
  transfer.limit = size;
  transfer.on_bytes = &on_bytes;
  const Curl curl = make_curl(url, token, transfer);
  if (!curl) return fail(Code::internal, "libcurl cannot start");
  // CURLOPT_RANGE, not CURLOPT_RESUME_FROM: a server without ranges may then answer with the whole file.
  const std::string range = fmt::format("{}-", have);
  if (have > 0) curl_easy_setopt(curl.get(), CURLOPT_RANGE, range.c_str());
  const CURLcode code = curl_easy_perform(curl.get());
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  if (code == CURLE_RANGE_ERROR || status == 416) {  // cannot be resumed: the next try starts anew
    std::filesystem::remove(part, error);
    return fail(Code::unavailable, fmt::format("{} cannot be resumed", url));
  }
  MR_TRY(outcome(code, transfer, url));
  if (std::fflush(file.get()) != 0 || fsync(fileno(file.get())) != 0)
    return fail(Code::resource_exhausted, fmt::format("cannot write {}: is the disk full?", part.string()));
  if (transfer.offset + transfer.written != size)
    return fail(Code::unavailable,
                fmt::format("{} ended after {} of {} bytes", url, transfer.offset + transfer.written, size));
  return {};
}

std::string url_escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~';
    if (plain)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace millrace::hub
