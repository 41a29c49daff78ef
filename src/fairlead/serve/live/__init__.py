"""The live page: a study as it runs, one episode under the reader's hands, and the features. Loopback only."""
