/* A reference to somebody's open file that is no descriptor of ours: a message in flight on a socket. */
#ifndef SK_KEPT_H
#define SK_KEPT_H

#include <stdint.h>

/*
 * Is descriptor fd of thread tid the file whose descriptor lies, unreceived, in socket (SCM_RIGHTS)? 0 also when there
 * is no such descriptor or thread, or we may not look. For the length of the call the file has a descriptor of ours.
 */
int sk_kept_is_at(int socket, int32_t tid, int fd);

#endif
