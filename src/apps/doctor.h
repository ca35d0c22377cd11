// What this machine is, and what to change for more tokens a second.
#pragma once
#include <string>

namespace millrace::apps {

struct DoctorOptions {
  double seconds = 1.0;  // for each measurement
  bool json = false;
};
int run_doctor(const DoctorOptions& options);

}  // namespace millrace::apps
