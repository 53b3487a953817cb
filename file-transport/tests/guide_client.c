/*
 * A client of the two files as a beginner writes it in C: open, write, close, wait, and then open,
 * read, close every 100 ms until the status is no longer 0.
 *
 *   guide_client DIR NUMBER      prints the answer; exit status 0 for 1:..., 2 for 2:..., 1 otherwise
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOOKS 600 /* of 100 ms each */

static int send_command(const char *directory, const char *number)
{
    char path[4096], line[64];
    int length = snprintf(line, sizeof line, "%s\n", number);

    snprintf(path, sizeof path, "%s/command.txt", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0) {
        perror(path);
        return -1;
    }
    if (write(fd, line, (size_t)length) != length) {
        perror(path);
        close(fd);
        return -1;
    }
    return close(fd);
}

/* The whole line, without its end; -1 when there is none. */
static int read_response(const char *directory, char *line, size_t size)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/response.txt", directory);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, line, size - 1);
    close(fd);
    if (length <= 0)
        return -1;
    line[length] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return 0;
}

int main(int argc, char **argv)
{
    char line[512];

    if (argc != 3) {
        fprintf(stderr, "usage: %s DIR NUMBER\n", argv[0]);
        return 1;
    }
    if (send_command(argv[1], argv[2]) != 0)
        return 1;
    sleep(1);
    for (int look = 0; look < LOOKS; look++) {
        if (read_response(argv[1], line, sizeof line) == 0 && strncmp(line, "0:", 2) != 0) {
            puts(line);
            return line[0] == '1' ? 0 : 2;
        }
        usleep(100 * 1000);
    }
    fprintf(stderr, "no answer\n");
    return 1;
}
