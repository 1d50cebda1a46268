"""The ops: each one's forward and vjp, free of devices. One file is one idea; imports only go down."""
