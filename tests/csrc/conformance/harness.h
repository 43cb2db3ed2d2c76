/* Between the main program and the harness. */
#ifndef CONFORMANCE_HARNESS_H
#define CONFORMANCE_HARNESS_H

#include "conformance.h"

#define MESSAGE_NBYTES 1024

enum verdict { ROW_PASSED, ROW_FAILED, ROW_SKIPPED };

/* Run it; message (MESSAGE_NBYTES) is why it failed or was skipped. */
enum verdict run_row(const struct row *row, char *message);

/* The part of a row that runs after execve; returns the exit status. */
int after_exec(const char *vm_fd);

/* Which generation is below us; 0 and a reason if it cannot be told. */
enum generation probe_generation(char *reason);

#endif
