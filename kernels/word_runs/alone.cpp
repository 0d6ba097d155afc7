// Which of some words a text holds as whole runs of letters and digits.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Bytes of UTF-8 beyond ASCII are parts of letters: what else there was is blank by then.
inline bool is_part(unsigned char byte) {
  return byte >= 128 || (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
}

struct Word {
  const char* start;
  int64_t length;
};

}  // namespace

// is_held[w] = 1 for words in `text`; `words` is UTF-8 with a 0 behind each.
extern "C" void switchyard_word_runs(uint8_t* is_held, const char* words, int64_t words_bytes, const char* text,
                                     int64_t text_bytes) {
  static thread_local std::vector<Word> known;
  known.clear();
  // First bytes of words: most runs begin with another.
  bool begins[256] = {};
  for (int64_t at = 0; at < words_bytes;) {
    int64_t length = int64_t(std::strlen(words + at));
    known.push_back({words + at, length});
    begins[(unsigned char)words[at]] = length > 0;
    at += length + 1;
  }
  std::memset(is_held, 0, known.size());
  for (int64_t at = 0; at < text_bytes;) {
    if (!is_part((unsigned char)text[at])) {
      ++at;
      continue;
    }
    int64_t end = at + 1;
    while (end < text_bytes && is_part((unsigned char)text[end])) ++end;
    if (begins[(unsigned char)text[at]])
      for (size_t word = 0; word < known.size(); ++word)
        if (known[word].length == end - at && std::memcmp(known[word].start, text + at, end - at) == 0)
          is_held[word] = 1;
    at = end;
  }
}
