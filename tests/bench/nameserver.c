// SPDX-License-Identifier: Apache-2.0
/*
 * The name server of the benchmarks: `nameserver` answers every question on UDP
 * port 53, and on 5353, with one A record. It takes and gives datagrams by the
 * batch, so that it is nobody's limit.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, ROOM = 1500, HEAD = 12 };

static const unsigned char record[] = {
	0xc0, 0x0c, 0,    1,    0,   1, /* the name asked for, A, IN */
	0,    0,    0x0e, 0x10,         /* an hour */
	0,    4,    198,  51,   100, 1,
};

/* Turn a question into its answer; the new size, 0 for what is no question. */
static int answer(unsigned char *data, int size)
{
	int end = HEAD;

	while (end < size && data[end])
		end += data[end] + 1;
	end += 5; /* the root, type and class */
	if (size < HEAD || end > size || end + (int)sizeof(record) > ROOM)
		return 0;
	data[2] = 0x84 | (data[2] & 1); /* an authoritative answer */
	data[3] = 0;
	memset(data + 6, 0, 6);
	data[7] = 1;
	memcpy(data + end, record, sizeof(record));
	return end + sizeof(record);
}

static void serve(int fd)
{
	static unsigned char data[BATCH][ROOM];
	static struct sockaddr_in6 peers[BATCH];
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];
	int count, sent;

	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){data[i], ROOM};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
		messages[i].msg_hdr.msg_name = &peers[i];
		messages[i].msg_hdr.msg_namelen = sizeof(peers[i]);
	}
	count = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
	for (int i = 0; i < count; i++)
		parts[i].iov_len = answer(data[i], messages[i].msg_len);
	for (int done = 0; done < count; done += sent) {
		sent = sendmmsg(fd, messages + done, count - done, 0);
		if (sent <= 0)
			return;
	}
}

int main(void)
{
	static const int ports[] = {53, 5353};
	struct pollfd polled[2];

	for (int i = 0; i < 2; i++) {
		struct sockaddr_in6 address = {
			.sin6_family = AF_INET6,
			.sin6_port = htons(ports[i]),
		};
		int size = 4 << 20;

		polled[i] = (struct pollfd){socket(AF_INET6, SOCK_DGRAM, 0), POLLIN, 0};
		setsockopt(polled[i].fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
		if (bind(polled[i].fd, (struct sockaddr *)&address, sizeof(address))) {
			perror("nameserver");
			return 1;
		}
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		poll(polled, 2, -1);
		for (int i = 0; i < 2; i++)
			if (polled[i].revents)
				serve(polled[i].fd);
	}
}
