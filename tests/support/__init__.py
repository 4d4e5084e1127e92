"""What the tests of promises share: waiting, managers with ears, sick servers, a lossy wire, other processes."""
