/* The loopback of a new network namespace.
 *
 * Upstream asks for an address and for the device to be brought up over netlink. Bringing it up is enough: the kernel
 * then gives it 127.0.0.1 and ::1 by itself (inetdev_event() in net/ipv4/devinet.c). Done by ioctl(2) it works on any
 * socket, also on the one kind that is left inside a sandbox without a network, where a nested one starts from. */
#include "seams.h"

#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

void
loopback_setup(void)
{
    struct ifreq request = { .ifr_name = "lo" };

    int device = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (device < 0)
        die_with_error("loopback: no socket");
    if (ioctl(device, SIOCGIFFLAGS, &request) != 0)
        die_with_error("loopback: reading the flags of lo");
    request.ifr_flags |= IFF_UP;
    if (ioctl(device, SIOCSIFFLAGS, &request) != 0)
        die_with_error("loopback: bringing up lo");
    close(device);
}
