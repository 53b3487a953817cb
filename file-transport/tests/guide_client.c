/*
 * A complete client of the two files, with nothing but open, write, read and close: it writes 0 and waits
 * for 0:Ready, so that no earlier answer is left, writes its number, and reads until the status is no
 * longer 0.
 *
 *   guide_client DIR NUMBER      prints the answer; exit status 0 for 1:..., 2 for 2:..., 1 otherwise
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOOKS 240 /* of 250 ms each */

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

static int is_ready(const char *line)
{
    return strcmp(line, "0:Ready") == 0;
}

static int is_answer(const char *line)
{
    return strncmp(line, "0:", 2) != 0;
}

/* Reads every 250 ms until the line is the wanted one; -1 when it never was. */
static int wait_for(const char *directory, int (*wanted)(const char *), char *line, size_t size)
{
    for (int look = 0; look < LOOKS; look++) {
        if (read_response(directory, line, size) == 0 && wanted(line))
            return 0;
        usleep(250 * 1000);
    }
    fprintf(stderr, "no answer\n");
    return -1;
}

int main(int argc, char **argv)
{
    char line[512];

    if (argc != 3) {
        fprintf(stderr, "usage: %s DIR NUMBER\n", argv[0]);
        return 1;
    }
    if (send_command(argv[1], "0") != 0 || wait_for(argv[1], is_ready, line, sizeof line) != 0)
        return 1;
    if (send_command(argv[1], argv[2]) != 0 || wait_for(argv[1], is_answer, line, sizeof line) != 0)
        return 1;
    puts(line);
    return line[0] == '1' ? 0 : 2;
}
