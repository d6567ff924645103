import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.CompilationMXBean;
import java.lang.management.ManagementFactory;
import java.lang.reflect.InvocationTargetException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.function.LongSupplier;

/**
 * One end of a measurement whose peer is a library for Java: the roles of worker.py, by the same clock (nanoTime() is CLOCK_MONOTONIC, the same in all
 * processes), with the same stops, marks and intended times, so that its figures stand beside the others'. peers/jvm.py starts it and reads what it says.
 *
 * What is different: before the third stop the ends exchange records until nothing is compiled any more (see warm(); without it a short round measures
 * the interpreter, and the compilers want the cores that both ends poll on). And what is sent and received is an array of bytes that is used again,
 * because a program in Java that cared for its latency would not make garbage.
 */
final class Bench {
    // First bytes of marks: the last record; the last of a burst for warming up; the last burst's. All take the same way through the code, for a branch
    // that is taken for the first time throws away what was compiled without it.
    static final int END = 255, BURST = 254, WARM = 253;
    static final int WARM_BURST = 5_000;
    static final int WARM_RECORDS = 50_000; // and
    static final long WARM_QUIET_NS = 200_000_000L; // this long without a compilation: warm
    static final long WARM_BYTES = 512L << 20; // no more are sent for it: not everybody forgets them
    static final int CHECK_EVERY = 32; // sends between two looks at the clock
    static final int ONE_A_CALL = 10; // what Aeron's samples let a poll hand over; the handler still gets them one by one

    interface Sender {
        void send(byte[] value, int length);

        default void flush() {}
    }

    interface Taker {
        /** value is valid until this returns. */
        void take(byte[] value, int length);
    }

    interface Receiver {
        /** Hands over what is there, waits for nothing. Returns how many records that were. */
        int poll(Taker taker);
    }

    interface Idle {
        void idle();

        void reset();
    }

    interface Library {
        Sender sender(int channel);

        Receiver receiver(int channel, int most);

        /** How its users wait when they do not burn a core. */
        Idle sleeping();
    }

    static final class Options {
        private final Map<String, String> given = new HashMap<>();

        Options(String[] arguments) {
            for (String argument : arguments) {
                int at = argument.indexOf('=');
                given.put(argument.substring(0, at), argument.substring(at + 1));
            }
        }

        String text(String name) {
            String found = given.get(name);
            if (found == null) throw new IllegalArgumentException("no argument " + name + "=...");
            return found;
        }

        boolean has(String name) {
            return given.containsKey(name);
        }

        int number(String name) {
            return Integer.parseInt(text(name));
        }

        long nanoseconds(String name) {
            return (long) (Double.parseDouble(text(name)) * 1e9);
        }
    }

    static final class Spin implements Idle {
        public void idle() {
            Thread.onSpinWait();
        }

        public void reset() {}
    }

    private final PrintStream out;
    private final BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    private final Options options;
    private final Library library;
    private final Idle idle;
    private final byte[] value;
    private final int batch;
    private int n, mark; // mark: 0 while none has come
    private byte[] last = {};
    private int lastLength;

    private Bench(PrintStream out, Options options) throws ReflectiveOperationException {
        this.out = out;
        this.options = options;
        library = (Library) Class.forName(options.text("library")).getDeclaredConstructor(Options.class).newInstance(options);
        idle = options.text("wait").equals("block") ? library.sleeping() : new Spin();
        value = new byte[Math.max(1, options.number("value_bytes"))];
        batch = options.has("batch") ? options.number("batch") : 1;
    }

    public static void main(String[] arguments) {
        PrintStream out = System.out;
        System.setOut(System.err); // libraries greet
        // A thread of its own: its name is what the harness finds to pin it by, without the compiler's threads.
        new Thread(() -> {
            try {
                new Bench(out, new Options(arguments)).run();
                Runtime.getRuntime().halt(0); // nothing to put away: the harness removes the directories
            } catch (Throwable error) {
                Throwable reason = error instanceof InvocationTargetException ? error.getCause() : error;
                reason.printStackTrace();
                System.err.println(String.valueOf(reason).replace('\n', ' ')); // the last line is what the harness tells
                Runtime.getRuntime().halt(1);
            }
        }, "bench end").start();
    }

    private void run() throws IOException {
        switch (options.text("role")) {
            case "ping" -> ping();
            case "echo" -> echo();
            case "source" -> source();
            case "sink" -> sink();
            case "clock" -> clock();
            case "watch" -> watch();
            case "committer" -> committer();
            default -> throw new IllegalArgumentException("no role " + options.text("role") + " in Java");
        }
        go(); // everybody has measured
    }

    private void stop() throws IOException {
        out.println("ready");
        out.flush();
        go();
    }

    private void go() throws IOException {
        if (in.readLine() == null) Runtime.getRuntime().halt(2); // the harness is gone
    }

    /** The last that is said before the end: {"name": number, ...}. */
    private void result(Object... pairs) {
        StringBuilder text = new StringBuilder("{");
        for (int i = 0; i < pairs.length; i += 2) text.append(i == 0 ? "" : ", ").append('"').append(pairs[i]).append("\": ").append(pairs[i + 1]);
        out.println(text.append('}'));
        out.flush();
    }

    private void latencies(long[] took, int count) throws IOException {
        ByteBuffer bytes = ByteBuffer.allocate(8 * count).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asLongBuffer().put(took, 0, count);
        Files.write(Path.of(options.text("latencies")), bytes.array());
    }

    /** Its pages are there before the clock runs. */
    private static long[] touched(int count) {
        long[] made = new long[count];
        Arrays.fill(made, 1);
        return made;
    }

    private long[] longs(String name) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(Path.of(options.text(name)))).order(ByteOrder.LITTLE_ENDIAN);
        long[] found = new long[bytes.remaining() / 8];
        bytes.asLongBuffer().get(found);
        return found;
    }

    private static byte[] mark(int kind, int length) {
        byte[] made = new byte[Math.max(1, length)];
        made[0] = (byte) kind;
        return made;
    }

    /** 0: it is a record. */
    private static int markOf(byte[] record) {
        int kind = record[0] & 255;
        return kind >= WARM ? kind : 0;
    }

    /** At least one record. */
    private void receive(Receiver receiver, Taker taker) {
        if (receiver.poll(taker) > 0) return;
        do {
            idle.idle();
        } while (receiver.poll(taker) == 0);
        idle.reset();
    }

    private void keep(byte[] record, int length) {
        last = record;
        lastLength = length;
    }

    /**
     * Sends bursts until nothing was compiled for a while, or warm_s are over. The other end, which receives them, compiles as much at the same time. Java
     * runs with -Xbatch, by which a thread waits for what it has compiled: so a while without is the end of it, and not a queue that is not served.
     */
    private void warm(LongSupplier burst) {
        CompilationMXBean compiler = ManagementFactory.getCompilationMXBean();
        long begin = System.nanoTime(), until = begin + options.nanoseconds("warm_s"), quietSince = begin, now = begin;
        long took = compiler.getTotalCompilationTime(), quiet = 0, most = WARM_BYTES / value.length;
        while (now < until && most > 0 && (quiet < WARM_RECORDS || now - quietSince < WARM_QUIET_NS)) {
            long sent = burst.getAsLong();
            now = System.nanoTime();
            most -= sent;
            quiet += sent;
            long before = took;
            took = compiler.getTotalCompilationTime();
            if (took != before) {
                quiet = 0;
                quietSince = now;
            }
        }
    }

    // --- one in flight ---------------------------------------------------------------------------------------------------

    private void ping() throws IOException {
        Receiver receiver = library.receiver(1, ONE_A_CALL);
        stop();
        Sender sender = library.sender(0);
        stop();
        long[] took = touched(options.number("most"));
        warm(() -> {
            int count = trips(sender, receiver, took, Math.min(WARM_BURST, took.length), WARM_QUIET_NS);
            there(sender, receiver, mark(BURST, value.length));
            return count;
        });
        there(sender, receiver, mark(WARM, value.length));
        stop();
        int count = trips(sender, receiver, took, took.length, options.nanoseconds("seconds"));
        there(sender, receiver, mark(END, value.length));
        latencies(took, count);
        result("n", count);
    }

    private int trips(Sender sender, Receiver receiver, long[] took, int most, long forNs) {
        Taker taker = this::keep;
        int count = 0;
        long begin = System.nanoTime(), until = begin + forNs;
        while (count < most && begin < until) {
            begin = System.nanoTime();
            sender.send(value, value.length);
            receive(receiver, taker);
            took[count++] = (System.nanoTime() - begin) / 2;
        }
        return count;
    }

    private void there(Sender sender, Receiver receiver, byte[] record) {
        sender.send(record, record.length);
        receive(receiver, this::keep);
    }

    private void echo() throws IOException {
        Receiver receiver = library.receiver(0, ONE_A_CALL);
        stop();
        Sender sender = library.sender(1);
        stop();
        while (echoes(sender, receiver) == BURST);
        stop();
        echoes(sender, receiver);
        result("echoed", 1);
    }

    /** Until a mark, which is returned. */
    private int echoes(Sender sender, Receiver receiver) {
        Taker taker = this::keep;
        do {
            receive(receiver, taker);
            sender.send(last, lastLength);
        } while (markOf(last) == 0);
        return markOf(last);
    }

    // --- as fast as it goes ----------------------------------------------------------------------------------------------

    private void source() throws IOException {
        stop();
        Sender sender = library.sender(options.number("channel"));
        stop();
        long most = options.number("most");
        warm(() -> burst(sender));
        sender.send(mark(WARM, value.length), value.length);
        stop();
        long begin = System.nanoTime();
        long sent = pour(sender, most, options.nanoseconds("seconds"));
        sender.flush();
        long end = System.nanoTime();
        sender.send(mark(END, value.length), value.length);
        sender.flush();
        result("sent", sent, "begin_ns", begin, "end_ns", end);
    }

    private long burst(Sender sender) {
        long sent = pour(sender, WARM_BURST, WARM_QUIET_NS);
        sender.send(mark(BURST, value.length), value.length);
        return sent;
    }

    private long pour(Sender sender, long most, long forNs) {
        long sent = 0, until = System.nanoTime() + forNs;
        int every = batch > 1 ? batch * Math.max(1, CHECK_EVERY / batch) : value.length >= 1 << 16 ? 1 : CHECK_EVERY;
        while (sent < most) {
            for (int i = 0; i < every; i++) sender.send(value, value.length);
            sent += every;
            if (System.nanoTime() > until) break;
        }
        return sent;
    }

    private void sink() throws IOException {
        Receiver receiver = library.receiver(options.number("channel"), batch > 1 ? 4096 : ONE_A_CALL);
        stop();
        stop();
        do drain(receiver); while (mark == BURST);
        stop();
        int received = drain(receiver);
        result("received", received, "last_ns", System.nanoTime());
    }

    /** Counts records until a mark. */
    private int drain(Receiver receiver) {
        n = mark = 0;
        Taker taker = (record, length) -> {
            n++;
            if (markOf(record) != 0) mark = markOf(record);
        };
        while (mark == 0) receive(receiver, taker);
        return n - 1;
    }

    // --- open loop -------------------------------------------------------------------------------------------------------

    private void clock() throws IOException {
        stop();
        Sender sender = library.sender(0);
        stop();
        long[] gaps = longs("gaps_ns");
        long[] sizes = options.has("sizes") ? longs("sizes") : null;
        warm(() -> burst(sender));
        for (int i = 0; i < 10; i++) {
            paced(sender, gaps, sizes, System.nanoTime(), WARM_QUIET_NS / 10);
            sender.send(mark(BURST, 8), 8);
        }
        sender.send(mark(WARM, 8), 8);
        stop();
        long begin = System.nanoTime() + 2_000_000;
        int late = paced(sender, gaps, sizes, begin, Long.MAX_VALUE);
        sender.flush();
        long end = System.nanoTime();
        sender.send(mark(END, 8), 8);
        sender.flush();
        result("sent", gaps.length, "late", late, "begin_ns", begin, "end_ns", end);
    }

    /** Record i is due at begin + the gaps so far, whatever became of those before it, and carries that time. */
    private int paced(Sender sender, long[] gaps, long[] sizes, long begin, long forNs) {
        ByteBuffer head = ByteBuffer.wrap(value);
        long due = begin;
        int late = 0;
        for (int i = 0; i < gaps.length && due - begin < forNs; i++) {
            due += gaps[i];
            head.putLong(0, due);
            if (System.nanoTime() >= due) late++;
            while (System.nanoTime() < due) Thread.onSpinWait();
            sender.send(value, sizes == null ? value.length : (int) sizes[i]);
        }
        return late;
    }

    private long nbytes, lastNs, longestGapNs;

    private void watch() throws IOException {
        Receiver receiver = library.receiver(0, ONE_A_CALL);
        stop();
        stop();
        long[] took = new long[options.number("most") + 1];
        do listen(receiver, took); while (mark == BURST);
        stop();
        int received = listen(receiver, took);
        latencies(took, received);
        result("received", received, "nbytes", nbytes, "last_ns", lastNs, "longest_gap_ns", longestGapNs);
    }

    private int listen(Receiver receiver, long[] took) {
        n = mark = 0;
        nbytes = lastNs = longestGapNs = 0;
        Taker taker = (record, length) -> {
            long at = System.nanoTime();
            if (markOf(record) != 0) {
                mark = markOf(record);
                return;
            }
            if (lastNs != 0) longestGapNs = Math.max(longestGapNs, at - lastNs);
            lastNs = at;
            took[n] = at - ByteBuffer.wrap(record).getLong(0);
            nbytes += length;
            if (n < took.length - 1) n++; // more than that come only while warming up
        };
        while (mark == 0) receive(receiver, taker);
        return n;
    }

    // --- on the disk -----------------------------------------------------------------------------------------------------

    private void committer() throws IOException {
        stop();
        Sender sender = library.sender(0);
        stop();
        long[] took = touched(options.number("most"));
        warm(() -> burst(sender)); // without the disk, or it would take a minute
        commits(sender, took, WARM_QUIET_NS);
        stop();
        long begin = System.nanoTime();
        int count = commits(sender, took, options.nanoseconds("seconds"));
        long end = System.nanoTime();
        latencies(took, count);
        result("sent", (long) count * batch, "begin_ns", begin, "end_ns", end);
    }

    private int commits(Sender sender, long[] took, long forNs) {
        int count = 0;
        long at = System.nanoTime(), until = at + forNs;
        while (count < took.length && at < until) {
            for (int i = 0; i < batch; i++) sender.send(value, value.length);
            sender.flush();
            long before = at;
            at = System.nanoTime();
            took[count++] = at - before;
        }
        return count;
    }
}
