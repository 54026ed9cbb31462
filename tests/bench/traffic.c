/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load of the network benchmarks: one connection at a time, so that a run on one processor
 * measures the path of the packets and not a scheduler.
 *
 *   traffic serve PORT              echo bytes of one connection after the other, v4 and v6
 *   traffic sink PORT               read and forget
 *   traffic rr ADDR PORT SECONDS    request/response of one byte on one connection, per second
 *   traffic crr ADDR PORT SECONDS [COUNT]   connect, request, response, close, per second, to COUNT
 *                                           IPv4 addresses from ADDR on, in no order
 *   traffic stream ADDR PORT SECONDS   bulk TCP, Gbit/s
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A prime: no neighbour is asked after its neighbour, and all are asked. */
#define STRIDE 7919

static char buffer[128 * 1024];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void serve(int port, int echo)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 128))
		fail("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		ssize_t got;

		if (connection < 0)
			continue;
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while ((got = read(connection, buffer, sizeof(buffer))) > 0)
			if (echo && write(connection, buffer, got) != got)
				break;
		close(connection);
	}
}

static int dial(const struct addrinfo *to)
{
	int one = 1, connection = socket(to->ai_family, SOCK_STREAM, 0);

	if (connection < 0 || connect(connection, to->ai_addr, to->ai_addrlen))
		fail("connect");
	setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return connection;
}

static void exchange(int connection)
{
	char byte = 'x';

	if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1)
		fail("exchange");
}

int main(int argc, char **argv)
{
	struct addrinfo hint = { .ai_socktype = SOCK_STREAM }, *to;
	double start, end, elapsed, count = 0;
	unsigned long addresses = 1, turn = 0;
	int connection;

	if (argc == 3 && (!strcmp(argv[1], "serve") || !strcmp(argv[1], "sink")))
		serve(atoi(argv[2]), argv[1][1] == 'e');
	if (argc == 6 && !strcmp(argv[1], "crr"))
		addresses = strtoul(argv[5], NULL, 10);
	if (argc < 5 || argc > 6 || !addresses || getaddrinfo(argv[2], argv[3], &hint, &to)) {
		fputs("traffic: see the head of traffic.c for how to call it\n", stderr);
		return 2;
	}
	start = now();
	end = start + atof(argv[4]);
	if (!strcmp(argv[1], "crr")) {
		struct sockaddr_in *in = (struct sockaddr_in *)to->ai_addr;
		uint32_t first = ntohl(in->sin_addr.s_addr);

		for (; now() < end; count++) {
			if (addresses > 1)
				in->sin_addr.s_addr = htonl(first + (turn += STRIDE) % addresses);
			connection = dial(to);
			exchange(connection);
			close(connection);
		}
		printf("%.1f\n", count / (now() - start));
		return 0;
	}
	connection = dial(to);
	if (!strcmp(argv[1], "rr")) {
		for (; now() < end; count++)
			exchange(connection);
		printf("%.1f\n", count / (now() - start));
		return 0;
	}
	while (now() < end) {
		ssize_t sent = write(connection, buffer, sizeof(buffer));

		if (sent < 0)
			fail("write");
		count += sent;
	}
	elapsed = now() - start;
	printf("%.3f\n", count * 8 / elapsed / 1e9);
	return 0;
}
