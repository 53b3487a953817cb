/* SPDX-License-Identifier: GPL-3.0-only
 *
 * What peer.c and bench.c share. */
#ifndef VCHAN_C_PEER_H
#define VCHAN_C_PEER_H

#include <libxenvchan.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct peer {
    struct libxenvchan *chan;
    size_t chunk;                /* bytes a call */
    size_t to_server, to_client; /* ring sizes asked for, server role */
    int packets;                 /* send and recv where a message fits the ring */
    double seconds;              /* the time for one point of the bench */
    unsigned long long bench_bytes; /* in place of it: what one point moves, if not 0 */
    char *message;               /* of the bench: as large as the largest */
    const char *points;          /* of the bench; NULL: the usual ones */
    double idle;                 /* seconds to stay connected after the points */
    int step;                    /* wait for a line on standard input before each point */
};

ssize_t peer_read(struct peer *p, void *buf, size_t len);
int peer_read_all(struct peer *p, void *buf, size_t len);
int peer_write_all(struct peer *p, const void *buf, size_t len);

int prepare_bench(struct peer *p);
int run_bench_serve(struct peer *p);
int run_bench(struct peer *p);

#endif
