"""The Kafka proxy as a program, between a real client and librdkafka's broker."""
