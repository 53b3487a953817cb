/* SPDX-License-Identifier: GPL-3.0-only
 *
 * Both ends of docs/vchan-bench.md over the stock libxenvchan, to compare with. */
#include <inttypes.h>
#include <poll.h>
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

#define MAX_MESSAGE (1u << 24)

static const char usual_points[] =
    "sink:64,sink:1024,sink:4096,sink:16384,sink:65536,"
    "source:64,source:1024,source:4096,source:16384,source:65536,"
    "echo:16,echo:1024";

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

/* Before the channel is there: touching so much memory takes half a second in an emulated guest,
 * which the first measured point would pay for. */
int prepare_bench(struct peer *p)
{
    p->message = malloc(MAX_MESSAGE);
    if (!p->message)
        return -1;
    memset(p->message, 0x5a, MAX_MESSAGE);
    return 0;
}

int run_bench_serve(struct peer *p)
{
    char *buf = p->message;
    struct command c;

    for (;;) {
        if (peer_read_all(p, &c, sizeof c) < 0)
            return closed();
        /* Kinds 5 and 6 compare two ways of using our own library. */
        if (memcmp(c.magic, "VBN1", 4) || c.message_bytes > MAX_MESSAGE || c.zero ||
            c.kind < SINK || c.kind > END) {
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

static int measure(struct peer *p, enum kind kind, const char *name, char *buf, uint32_t bytes)
{
    size_t ring = (size_t)1 << (kind == SOURCE ? p->chan->read.order : p->chan->write.order);
    uint64_t count = 8;
    double seconds;

    if (p->bench_bytes)
        count = p->bench_bytes > bytes ? p->bench_bytes / bytes : 1;
    /* A growing count, until one run lasts at least half of the wanted time. */
    for (;;) {
        seconds = run_point(p, kind, buf, bytes, count);
        if (seconds < 0)
            return closed();
        if (p->bench_bytes || seconds * 2 >= p->seconds)
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

/* Says what comes next and waits for a line, if that was asked for. */
static void step(struct peer *p, const char *next)
{
    int c;

    if (!p->step)
        return;
    printf("{\"step\":\"%s\"}\n", next);
    while ((c = getchar()) != '\n' && c != EOF)
        ;
}

/* Waits for the server to say something, which it does not. */
static int stay_idle(struct peer *p)
{
    struct pollfd event = {.fd = libxenvchan_fd_for_select(p->chan), .events = POLLIN};
    double end = now() + p->idle;

    for (double left; (left = end - now()) > 0;) {
        if (libxenvchan_data_ready(p->chan) > 0 || libxenvchan_is_open(p->chan) != 1)
            return closed();
        if (poll(&event, 1, (int)(left * 1000) + 1) > 0 && libxenvchan_wait(p->chan) < 0)
            return closed();
    }
    return 0;
}

int run_bench(struct peer *p)
{
    char *buf = p->message;
    struct command end = {{'V', 'B', 'N', '1'}, END, 0, 0, 0};

    for (const char *at = p->points ? p->points : usual_points; *at;) {
        char point[32] = "", name[16] = "";
        uint32_t bytes = 0;
        enum kind kind;

        sscanf(at, "%31[^,]", point);
        at += strlen(point);
        at += *at == ',';
        sscanf(point, "%15[^:]:%" SCNu32, name, &bytes);
        kind = !strcmp(name, "sink") ? SINK : !strcmp(name, "source") ? SOURCE : ECHO;
        if ((kind == ECHO && strcmp(name, "echo")) || bytes == 0 || bytes > MAX_MESSAGE) {
            fprintf(stderr, "c-peer: `%s` is no point: KIND:BYTES is needed\n", point);
            return 2;
        }
        step(p, point);
        if (measure(p, kind, name, buf, bytes))
            return 1;
    }
    if (p->idle > 0) {
        step(p, "idle");
        if (stay_idle(p))
            return 1;
    }
    step(p, "end");
    free(buf);
    return peer_write_all(p, &end, sizeof end) < 0 ? closed() : 0;
}
