#include "engine/internal/text_lookup.h"

#include <gtest/gtest.h>

#include <random>

namespace millrace::engine {
namespace {

using Tokens = std::vector<TokenId>;

TEST(TextLookup, FindsWhereTheLastTokensStoodBefore) {
  TextLookup lookup;
  const Tokens text = {1, 2, 3, 4, 5, 6, 9, 2, 3};
  const Tokens guesses = {4, 5};  // 2 3 4 5 stood at 1..4
  const auto place = lookup.find(text, guesses);
  EXPECT_EQ(place.last, 4);
  EXPECT_EQ(place.matched, 4);
  EXPECT_EQ(TextLookup::at(text, guesses, place.last + 1), 6);
}

TEST(TextLookup, ThreeEqualTokensAreNotEnough) {
  TextLookup lookup;
  EXPECT_EQ(lookup.find(Tokens{1, 2, 3, 4, 5, 6, 9, 2, 3}, Tokens{4}).last, -1);
}

TEST(TextLookup, TheLatestPlaceCounts) {
  TextLookup lookup;
  const Tokens text = {1, 2, 3, 4, 7, 1, 2, 3, 4, 8, 1, 2, 3};
  EXPECT_EQ(lookup.find(text, Tokens{4}).last, 8);
}

TEST(TextLookup, CountsEqualTokensUpToALimit) {
  TextLookup lookup;
  Tokens text;
  for (int turn = 0; turn < 2; ++turn)
    for (TokenId token = 0; token < 40; ++token) text.push_back(token);
  text.pop_back();
  const auto place = lookup.find(text, Tokens{39});
  EXPECT_EQ(place.last, 39);
  EXPECT_EQ(place.matched, TextLookup::kMatchedMax);
}

TEST(TextLookup, APeriodGoesOnIntoTheGuesses) {
  TextLookup lookup;
  const Tokens text = {7, 8, 7, 8, 7, 8};
  Tokens guesses = {7};
  auto place = lookup.find(text, guesses);
  ASSERT_EQ(place.last, 4);  // the last place with a token after it
  for (int i = 0; i < 6; ++i) guesses.push_back(TextLookup::at(text, guesses, ++place.last));
  EXPECT_EQ(guesses, (Tokens{7, 8, 7, 8, 7, 8, 7}));
}

TEST(TextLookup, ShortTextsHaveNothingBefore) {
  for (size_t size = 0; size <= 5; ++size) {
    TextLookup lookup;
    const Tokens text(size, 3);
    EXPECT_EQ(lookup.find(text, {}).last, size == 5 ? 3 : -1) << size;
  }
}

// Against a search of everything, while the text grows past the size of the table again and again.
TEST(TextLookup, FindsWhatASearchFinds) {
  std::mt19937 random(5);
  TextLookup lookup;
  Tokens text;
  int found = 0, missed = 0;
  for (int step = 0; step < 3000; ++step) {
    text.push_back(static_cast<TokenId>(random() % 7));
    const Tokens guesses(random() % 3, static_cast<TokenId>(random() % 7));
    Tokens all = text;
    all.insert(all.end(), guesses.begin(), guesses.end());
    const auto size = static_cast<int64_t>(all.size());
    int64_t expected = -1;
    for (int64_t last = TextLookup::kTokens - 1; last + 1 < static_cast<int64_t>(text.size()) && size > 4;
         ++last)
      if (std::equal(all.end() - TextLookup::kTokens, all.end(),
                     all.begin() + last - TextLookup::kTokens + 1))
        expected = last;
    const auto place = lookup.find(text, guesses);
    if (place.last == expected) {
      found += expected >= 0;
    } else {  // another took its slot: then it is not found, and never wrong
      EXPECT_EQ(place.last, -1);
      ++missed;
    }
  }
  EXPECT_GT(found, 1000);
  EXPECT_LT(missed, found / 2);
}

TEST(TextLookup, ALongTextKeepsItsLaterPlaces) {
  TextLookup lookup;
  Tokens text;
  for (TokenId i = 0; i < 300'000; ++i) text.push_back(i);
  const auto tail = [&](TokenId from) { return Tokens{from, from + 1, from + 2, from + 3}; };
  int found = 0;
  for (TokenId from = 299'000; from < 299'900; ++from)
    found += lookup.find(text, tail(from)).last == from + 3;
  EXPECT_GT(found, 850);
}

}  // namespace
}  // namespace millrace::engine
