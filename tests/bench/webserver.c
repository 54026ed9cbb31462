// SPDX-License-Identifier: Apache-2.0
/*
 * The web server of the benchmarks: `webserver PORT...` answers every request
 * with 200 and "ok".
 *
 * One thread, connections kept alive, nothing read but the end of a request's
 * head. It costs so little that what is measured is the way to it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"

enum { LISTENERS = 16, CLIENTS = 65536, ROOM = 16384 };

static int listeners[LISTENERS], count;
static unsigned char seen[CLIENTS]; /* characters of the end of a head that a client has sent */

static int is_listener(int fd)
{
	for (int i = 0; i < count; i++)
		if (listeners[i] == fd)
			return 1;
	return 0;
}

static void watch(int epoll, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void listen_on(int epoll, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = socket(AF_INET6, SOCK_STREAM, 0), yes = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1024)) {
		perror("webserver");
		exit(1);
	}
	listeners[count++] = fd;
	watch(epoll, fd);
}

/* Answer every request that ends in what was read; 0 when the client is gone.
 */
static int serve(int fd)
{
	static char data[ROOM], out[ROOM * 4];
	static const char end[] = "\r\n\r\n";
	ssize_t size = read(fd, data, sizeof(data)), used = 0;

	if (size <= 0)
		return 0;
	for (ssize_t i = 0; i < size; i++) {
		seen[fd] = data[i] == end[seen[fd]] ? seen[fd] + 1 : data[i] == '\r';
		if (seen[fd] < 4)
			continue;
		seen[fd] = 0;
		memcpy(out + used, ANSWER, sizeof(ANSWER) - 1);
		used += sizeof(ANSWER) - 1;
	}
	return !used || write(fd, out, used) == used;
}

int main(int argc, char **argv)
{
	int epoll = epoll_create1(0), yes = 1;
	struct epoll_event events[256];

	for (int i = 1; i < argc && count < LISTENERS; i++)
		listen_on(epoll, atoi(argv[i]));
	puts("ready");
	fflush(stdout);
	for (;;) {
		int ready = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			if (is_listener(fd)) {
				int client = accept(fd, NULL, NULL);

				if (client < 0)
					continue;
				if (client >= CLIENTS) {
					close(client);
					continue;
				}
				setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
				seen[client] = 0;
				watch(epoll, client);
			} else if (!serve(fd)) {
				close(fd);
			}
		}
	}
}
