/* SPDX-License-Identifier: GPL-3.0-only
 *
 * The other end of the interoperability tests and benches: a small program on the stock
 * libxenvchan, written from its public header <libxenvchan.h>. Build it with
 *
 *     cc -O2 -Wall -Wextra -o vchan-c-peer peer.c bench.c -lxenvchan
 *
 *     vchan-c-peer server DOMID PATH  MODE [options]
 *     vchan-c-peer client DOMID PATH  MODE [options]
 *
 *     vchan-c-peer pattern --bytes N     what `source` sends, on standard output; its length and
 *                                        checksum on standard error
 *
 * MODE is one of
 *     echo         sends every byte back until the other side closes
 *     sink         discards; at the end prints `sink: N bytes crc32c=HEX`
 *     source       sends --bytes N of a fixed pattern, closes, prints `source: N bytes crc32c=HEX`
 *     ping         sends --bytes N of the pattern in messages of --chunk, reads each back and compares
 *     bench-serve  answers the bench of docs/vchan-bench.md
 *     bench        runs it, and prints one JSON object a line
 * Options
 *     --to-server N --to-client N   ring sizes in bytes (server role; default 65536)
 *     --nonblocking                 uses the library's non-blocking calls and libxenvchan_wait
 *     --chunk N                     bytes a call (default 65536)
 *     --bytes N                     how much `source` and `ping` send
 *     --timeout S                   ends the program with SIGALRM after S seconds (default 120)
 *     --time S                      seconds for a point of the bench (default 0.5)
 *     --points LIST                 the points of the bench, KIND:BYTES separated by commas
 *     --bytes N                     also: what each point of the bench moves, in place of --time
 *     --idle S                      the bench then stays connected for S seconds without traffic
 *     --step                        the bench announces each point and waits for a line before it
 *     --packets                     the bench sends a message with the library's all-or-nothing
 *                                   calls, where it fits the ring
 * Exit status: 0 success, 1 failure, 2 wrong usage.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "peer.h"

static uint32_t crc_table[256];

static void crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = (c >> 1) ^ (c & 1 ? 0x82f63b78u : 0); /* Castagnoli, reflected */
        crc_table[i] = c;
    }
}

static uint32_t crc_add(uint32_t crc, const unsigned char *data, size_t len)
{
    crc = ~crc;
    while (len--)
        crc = (crc >> 8) ^ crc_table[(crc ^ *data++) & 0xff];
    return ~crc;
}

/* Reads at least one byte. 0: end of stream. -1: error.
 *
 * The library answers -1 both for the end and for an error, and does so even while bytes that came
 * just before the close are still in the ring; so its -1 is believed only when none are. */
ssize_t peer_read(struct peer *p, void *buf, size_t len)
{
    for (;;) {
        int n = libxenvchan_read(p->chan, buf, len);
        if (n > 0)
            return n;
        if (n < 0) {
            if (libxenvchan_data_ready(p->chan) > 0)
                continue;
            return libxenvchan_is_open(p->chan) ? -1 : 0;
        }
        /* Non-blocking and empty. */
        if (!libxenvchan_is_open(p->chan)) {
            if (libxenvchan_data_ready(p->chan) > 0)
                continue;
            return 0;
        }
        if (libxenvchan_wait(p->chan) < 0)
            return -1;
    }
}

/* Reads exactly len bytes. */
int peer_read_all(struct peer *p, void *buf, size_t len)
{
    if (p->packets && p->chan->blocking && len <= (size_t)1 << p->chan->read.order)
        return libxenvchan_recv(p->chan, buf, len) == (int)len ? 0 : -1;
    for (size_t done = 0; done < len;) {
        ssize_t n = peer_read(p, (char *)buf + done, len - done);
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

int peer_write_all(struct peer *p, const void *buf, size_t len)
{
    if (p->packets && p->chan->blocking && len <= (size_t)1 << p->chan->write.order)
        return libxenvchan_send(p->chan, buf, len) == (int)len ? 0 : -1;
    for (size_t done = 0; done < len;) {
        int n = libxenvchan_write(p->chan, (const char *)buf + done, len - done);
        if (n < 0)
            return -1;
        done += (size_t)n;
        if (n == 0) {
            if (!libxenvchan_is_open(p->chan) || libxenvchan_wait(p->chan) < 0)
                return -1;
        }
    }
    return 0;
}

static int run_echo(struct peer *p)
{
    char *buf = malloc(p->chunk);
    unsigned long long total = 0;
    ssize_t n;

    while ((n = peer_read(p, buf, p->chunk)) > 0) {
        if (peer_write_all(p, buf, (size_t)n) < 0) {
            fprintf(stderr, "c-peer: the channel closed while echoing\n");
            return 1;
        }
        total += (unsigned long long)n;
    }
    printf("echo: %llu bytes\n", total);
    free(buf);
    return n < 0;
}

static int run_sink(struct peer *p)
{
    unsigned char *buf = malloc(p->chunk);
    unsigned long long total = 0;
    uint32_t crc = 0;
    ssize_t n;

    while ((n = peer_read(p, buf, p->chunk)) > 0) {
        crc = crc_add(crc, buf, (size_t)n);
        total += (unsigned long long)n;
    }
    printf("sink: %llu bytes crc32c=%08x\n", total, crc);
    free(buf);
    return n < 0;
}

static uint32_t fill(unsigned char *buf, size_t len, uint32_t state)
{
    for (size_t i = 0; i < len; i++) {
        state = state * 1664525u + 1013904223u;
        buf[i] = (unsigned char)(state >> 24);
    }
    return state;
}

/* Sends the pattern into the channel, or without one to standard output. */
static int run_source(struct peer *p, unsigned long long bytes)
{
    unsigned char *buf = malloc(p->chunk);
    unsigned long long sent = 0;
    uint32_t crc = 0, state = 1;

    while (sent < bytes) {
        size_t n = bytes - sent < p->chunk ? (size_t)(bytes - sent) : p->chunk;
        state = fill(buf, n, state);
        if (p->chan ? peer_write_all(p, buf, n) < 0 : fwrite(buf, 1, n, stdout) != n) {
            fprintf(stderr, "c-peer: the channel closed after %llu bytes\n", sent);
            return 1;
        }
        crc = crc_add(crc, buf, n);
        sent += n;
    }
    fprintf(p->chan ? stdout : stderr, "source: %llu bytes crc32c=%08x\n", sent, crc);
    free(buf);
    return 0;
}

static int run_ping(struct peer *p, unsigned long long bytes)
{
    unsigned char *sent = malloc(p->chunk), *back = malloc(p->chunk);
    unsigned long long done = 0;
    uint32_t state = 1;

    while (done < bytes) {
        size_t n = bytes - done < p->chunk ? (size_t)(bytes - done) : p->chunk;
        state = fill(sent, n, state);
        if (peer_write_all(p, sent, n) < 0 || peer_read_all(p, back, n) < 0) {
            fprintf(stderr, "c-peer: the channel closed after %llu bytes\n", done);
            return 1;
        }
        if (memcmp(sent, back, n)) {
            fprintf(stderr, "c-peer: other bytes came back after %llu\n", done);
            return 1;
        }
        done += n;
    }
    printf("ping: %llu bytes\n", done);
    free(sent);
    free(back);
    return 0;
}

/* The library's client fails at once while there are no keys: try until the alarm. */
static struct libxenvchan *connect_client(int domain, const char *path)
{
    for (;;) {
        struct libxenvchan *chan = libxenvchan_client_init(NULL, domain, path);
        if (chan)
            return chan;
        usleep(20 * 1000);
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: vchan-c-peer server|client DOMID PATH "
                    "echo|sink|source|ping|bench-serve|bench [options]; see the head of peer.c\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct peer p = {.chunk = 65536, .to_server = 65536, .to_client = 65536, .seconds = 0.5};
    unsigned long long bytes = 0;
    unsigned timeout = 120;
    int blocking = 1, status;

    if (argc == 4 && !strcmp(argv[1], "pattern") && !strcmp(argv[2], "--bytes")) {
        crc_init();
        return run_source(&p, strtoull(argv[3], NULL, 10)) || fflush(stdout);
    }
    if (argc < 5)
        return usage();
    int server = !strcmp(argv[1], "server");
    if (!server && strcmp(argv[1], "client"))
        return usage();
    int domain = atoi(argv[2]);
    const char *path = argv[3], *mode = argv[4];
    for (int i = 5; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--nonblocking")) {
            blocking = 0;
            continue;
        }
        if (!strcmp(argv[i], "--packets")) {
            p.packets = 1;
            continue;
        }
        if (!strcmp(argv[i], "--step")) {
            p.step = 1;
            continue;
        }
        if (!value)
            return usage();
        if (!strcmp(argv[i], "--to-server"))
            p.to_server = strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--to-client"))
            p.to_client = strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--chunk"))
            p.chunk = strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--bytes"))
            bytes = strtoull(value, NULL, 10);
        else if (!strcmp(argv[i], "--timeout"))
            timeout = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--time"))
            p.seconds = strtod(value, NULL);
        else if (!strcmp(argv[i], "--points"))
            p.points = value;
        else if (!strcmp(argv[i], "--idle"))
            p.idle = strtod(value, NULL);
        else
            return usage();
        i++;
    }
    if (p.chunk == 0)
        return usage();

    p.bench_bytes = bytes;
    setvbuf(stdout, NULL, _IOLBF, 0);
    crc_init();
    alarm(timeout);
    if (!strncmp(mode, "bench", 5) && prepare_bench(&p) < 0) {
        fprintf(stderr, "c-peer: no memory\n");
        return 1;
    }
    /* The server reads what goes to the server (left) and writes what goes to the client. */
    p.chan = server ? libxenvchan_server_init(NULL, domain, path, p.to_server, p.to_client)
                    : connect_client(domain, path);
    if (!p.chan) {
        fprintf(stderr, "c-peer: cannot serve %s for domain %d: %s\n", path, domain,
                strerror(errno));
        return 1;
    }
    p.chan->blocking = blocking;
    printf("c-peer: %s ready\n", argv[1]);
    while (server && libxenvchan_is_open(p.chan) == 2)
        if (libxenvchan_wait(p.chan) < 0)
            return 1;

    if (!strcmp(mode, "echo"))
        status = run_echo(&p);
    else if (!strcmp(mode, "sink"))
        status = run_sink(&p);
    else if (!strcmp(mode, "source"))
        status = run_source(&p, bytes);
    else if (!strcmp(mode, "ping"))
        status = run_ping(&p, bytes);
    else if (!strcmp(mode, "bench-serve"))
        status = run_bench_serve(&p);
    else if (!strcmp(mode, "bench"))
        status = run_bench(&p);
    else
        return usage();
    libxenvchan_close(p.chan);
    return status;
}
