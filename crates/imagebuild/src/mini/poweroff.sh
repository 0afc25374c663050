#!/bin/sh
# The power button.
echo "allod-mini: power button" >/dev/console
exec /sbin/poweroff
