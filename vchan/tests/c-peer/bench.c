/* SPDX-License-Identifier: GPL-3.0-only
 *
 * Both ends of docs/vchan-bench.md over the stock libxenvchan, to compare with. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "peer.h"

enum kind { SINK = 1, SOURCE = 2, ECHO = 3, END = 4 };

/* Little-endian throughout, as every machine that libxenvchan runs on in practice. */
struct command {
    char magic[4];
    uint32_t kind, message_bytes, zero;
    uint64_t count;
};

_Static_assert(sizeof(struct command) == 24, "the command has no padding");

static const uint32_t stream_bytes[] = {64, 1024, 4096, 16384, 65536};
static const uint32_t echo_bytes[] = {16, 1024};

#define MAX_MESSAGE (1u << 24)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int closed(void)
{
    fprintf(stderr, "c-peer: the channel closed in the middle of the benchmark\n");
    return 1;
}

int run_bench_serve(struct peer *p)
{
    char *buf = malloc(MAX_MESSAGE);
    struct command c;

    memset(buf, 0x5a, MAX_MESSAGE);
    for (;;) {
        if (peer_read_all(p, &c, sizeof c) < 0)
            return closed();
        if (memcmp(c.magic, "VBN1", 4) || c.message_bytes > MAX_MESSAGE || c.zero) {
            fprintf(stderr, "c-peer: not a command of the benchmark\n");
            return 1;
        }
        if (c.kind == END)
            break;
        for (uint64_t i = 0; i < c.count; i++) {
            if (c.kind != SOURCE && peer_read_all(p, buf, c.message_bytes) < 0)
                return closed();
            if (c.kind != SINK && peer_write_all(p, buf, c.message_bytes) < 0)
                return closed();
        }
        if (c.kind == SINK) {
            uint64_t total = c.count * c.message_bytes;
            if (peer_write_all(p, &total, sizeof total) < 0)
                return closed();
        }
    }
    free(buf);
    return 0;
}

/* One run of count messages; seconds, or less than 0 when the channel closed. */
static double run_point(struct peer *p, enum kind kind, char *buf, uint32_t bytes, uint64_t count)
{
    struct command c = {{'V', 'B', 'N', '1'}, kind, bytes, 0, count};
    double start = now();

    if (peer_write_all(p, &c, sizeof c) < 0)
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        if (kind != SOURCE && peer_write_all(p, buf, bytes) < 0)
            return -1;
        if (kind != SINK && peer_read_all(p, buf, bytes) < 0)
            return -1;
    }
    if (kind == SINK) {
        uint64_t total;
        if (peer_read_all(p, &total, sizeof total) < 0 || total != count * bytes)
            return -1;
    }
    return now() - start;
}

static int measure(struct peer *p, enum kind kind, char *buf, uint32_t bytes, size_t ring)
{
    const char *name = kind == SINK ? "sink" : kind == SOURCE ? "source" : "echo";
    uint64_t count = 8;
    double seconds;

    /* A growing count, until one run lasts at least half of the wanted time. */
    for (;;) {
        seconds = run_point(p, kind, buf, bytes, count);
        if (seconds < 0)
            return closed();
        if (seconds * 2 >= p->seconds)
            break;
        double factor = p->seconds / (seconds > 1e-9 ? seconds : 1e-9);
        factor = factor < 2 ? 2 : factor > 16 ? 16 : factor;
        count = (uint64_t)((double)count * factor);
    }
    printf("{\"kind\":\"%s\",\"message_bytes\":%" PRIu32 ",\"ring_bytes\":%zu,", name, bytes, ring);
    if (kind == ECHO)
        printf("\"us_per_round_trip\":%.3f", seconds * 1e6 / (double)count);
    else
        printf("\"mb_per_s\":%.3f", (double)count * bytes / seconds / 1e6);
    printf(",\"messages\":%" PRIu64 ",\"seconds\":%.6f}\n", count, seconds);
    return 0;
}

int run_bench(struct peer *p)
{
    char *buf = malloc(MAX_MESSAGE);
    size_t outgoing = (size_t)1 << p->chan->write.order;
    size_t incoming = (size_t)1 << p->chan->read.order;
    struct command end = {{'V', 'B', 'N', '1'}, END, 0, 0, 0};

    memset(buf, 0x5a, MAX_MESSAGE);
    for (size_t i = 0; i < COUNT_OF(stream_bytes); i++)
        if (measure(p, SINK, buf, stream_bytes[i], outgoing))
            return 1;
    for (size_t i = 0; i < COUNT_OF(stream_bytes); i++)
        if (measure(p, SOURCE, buf, stream_bytes[i], incoming))
            return 1;
    for (size_t i = 0; i < COUNT_OF(echo_bytes); i++)
        if (measure(p, ECHO, buf, echo_bytes[i], outgoing))
            return 1;
    free(buf);
    return peer_write_all(p, &end, sizeof end) < 0 ? closed() : 0;
}
