#include "apps/command.h"

int main(int argc, char** argv) { return millrace::apps::run_command(argc, argv); }
