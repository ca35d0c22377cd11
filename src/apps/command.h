// The `millrace` command: parses the command line and calls the rooms.
#pragma once

namespace millrace::apps {

int run_command(int argc, char** argv);  // the process's exit status: 0, 1 = failed, 2 = wrong input

}  // namespace millrace::apps
