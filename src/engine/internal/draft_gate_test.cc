#include "engine/internal/draft_gate.h"

#include <gtest/gtest.h>

namespace millrace::engine {
namespace {

// Steps of 32 sequences, a window's worth at most, or until it closes.
int noted(DraftGate& gate, double tokens, double took, int steps = 100) {
  int noted = 0;
  for (; noted < steps && gate.open(); ++noted) gate.note(tokens, took, 2.0, 32);
  return noted;
}

int closed_steps(DraftGate& gate) {
  int steps = 0;
  for (; !gate.open(); ++steps) gate.note_plain();
  return steps;
}

TEST(DraftGate, StaysOpenWhileStepsMakeMoreTokensInTheirTime) {
  DraftGate gate;
  EXPECT_EQ(noted(gate, 1.3, 2.4), 100);  // 1.3 tokens in 1.2 times
  EXPECT_LT(noted(gate, 1.3, 2.8), 100);
  EXPECT_FALSE(gate.open());
}

TEST(DraftGate, ClosesForTwiceAsLongEachTimeAndAfterGoodStepsShortlyAgain) {
  DraftGate gate;
  for (int steps = DraftGate::kClosedFirst; steps < DraftGate::kClosedMost; steps *= 2) {
    EXPECT_LT(noted(gate, 1.2, 2.6), 40) << "a trial is short";
    EXPECT_EQ(closed_steps(gate), steps);
  }
  for (int i = 0; i < 3; ++i) {
    noted(gate, 1.2, 2.6);
    EXPECT_EQ(closed_steps(gate), DraftGate::kClosedMost);
  }
  noted(gate, 1.5, 2.6);
  EXPECT_TRUE(gate.open());
  noted(gate, 1.2, 2.6);
  EXPECT_EQ(closed_steps(gate), DraftGate::kClosedFirst);
}

// One step of thirty that took fifty times as long says nothing of guesses.
TEST(DraftGate, OneDisturbedStepDoesNotCloseIt) {
  DraftGate gate;
  noted(gate, 1.3, 2.4);
  gate.note(1.3, 120, 2.0, 32);
  EXPECT_EQ(noted(gate, 1.3, 2.4), 100);
}

// Few tokens tell little: of fewer sequences more steps are needed.
TEST(DraftGate, FewSequencesNeedMoreSteps) {
  DraftGate few, many;
  int steps_few = 0, steps_many = 0;
  for (; few.open(); ++steps_few) few.note(1, 1.1, 1, 4);
  for (; many.open(); ++steps_many) many.note(1, 1.1, 1, 64);
  EXPECT_GT(steps_few, 128);
  EXPECT_LT(steps_many, 32);
}

}  // namespace
}  // namespace millrace::engine
