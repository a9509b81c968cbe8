package io.grpc;

/**
 * Stands in front of the Pub/Sub emulator's jar, 0.8.20, whose own class of this name lacks asRuntimeException: what calls
 * it when a client cancels a stream fails, and the dead stream goes on taking messages. The rest is as it was.
 */
public final class InternalStatus {
    public static final Metadata.Key<String> MESSAGE_KEY = Status.MESSAGE_KEY;
    public static final Metadata.Key<Status> CODE_KEY = Status.CODE_KEY;

    private InternalStatus() {}

    public static StatusRuntimeException asRuntimeException(Status status, Metadata trailers, boolean fillInStackTrace) {
        return fillInStackTrace
                ? new StatusRuntimeException(status, trailers)
                : asRuntimeExceptionWithoutStacktrace(status, trailers);
    }

    public static StatusRuntimeException asRuntimeExceptionWithoutStacktrace(Status status, Metadata trailers) {
        return new InternalStatusRuntimeException(status, trailers);
    }
}
