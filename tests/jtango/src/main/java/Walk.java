import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import fr.esrf.Tango.DevError;
import fr.esrf.Tango.DevEncoded;
import fr.esrf.Tango.DevFailed;
import fr.esrf.Tango.DevInfo_3;
import fr.esrf.Tango.DevState;
import fr.esrf.TangoApi.AttributeInfoEx;
import fr.esrf.TangoApi.CallBack;
import fr.esrf.TangoApi.CommandInfo;
import fr.esrf.TangoApi.Database;
import fr.esrf.TangoApi.DbServInfo;
import fr.esrf.TangoApi.DeviceAttribute;
import fr.esrf.TangoApi.DeviceData;
import fr.esrf.TangoApi.DeviceInfo;
import fr.esrf.TangoApi.DeviceProxy;
import fr.esrf.TangoApi.events.EventData;
import fr.esrf.TangoDs.TangoConst;
import java.io.PrintStream;
import java.lang.reflect.Array;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What Jive and Astor do with a device, by the library that they are made of; one JSON document on standard output.
 *
 * look DEVICE...      database, wizard, commands, attributes and values; changes nothing
 * series DETECTOR FILE    writes settings, some that are refused, and takes three frames with events
 */
public class Walk {
    private static final int SHOWN = 100; // elements of an array
    private static final long LIMIT = 60_000; // ms
    private static final Gson GSON =
            new GsonBuilder().serializeNulls().serializeSpecialFloatingPointValues().disableHtmlEscaping().create();

    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err); // whatever a library prints is not the document
        int code = 1;
        try {
            List<String> names = Arrays.asList(args).subList(1, args.length);
            out.println(GSON.toJson(args[0].equals("look") ? look(names) : series(names.get(0), names.get(1))));
            code = 0;
        } catch (DevFailed failed) {
            System.err.println(GSON.toJson(errors(failed)));
        } catch (Exception other) {
            other.printStackTrace();
        }
        System.exit(code); // threads of the library do not end by themselves
    }

    // --- look -------------------------------------------------------------------------------------------------------

    static Map<String, Object> look(List<String> names) throws DevFailed {
        Map<String, Object> all = new LinkedHashMap<>();
        for (String name : names) {
            DeviceProxy device = new DeviceProxy(name);
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("database", database(name));
            found.put("admin", admin(device.get_adm_dev()));
            found.put("info", info(device.info_3()));
            found.put("state", device.state().toString());
            found.put("status", device.status());
            found.put("commands", commands(device));
            found.put("attributes", attributes(device));
            found.put("values", values(device));
            all.put(name, found);
        }
        return all;
    }

    /** Jive's tree and Astor's list of servers. */
    static Map<String, Object> database(String name) throws DevFailed {
        Database db = new Database();
        DeviceInfo info = db.get_device_info(name);
        String kind = db.get_class_for_device(name); // `info` has a field for it that the library leaves `unknown`
        String[] parts = name.split("/");
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("server", info.server);
        found.put("class", kind);
        found.put("exported", info.exported);
        found.put("pid", info.pid);
        found.put("domains", db.get_device_domain(parts[0] + "*"));
        found.put("families", db.get_device_family(parts[0] + "/*"));
        found.put("members", db.get_device_member(parts[0] + "/" + parts[1] + "/*"));
        found.put("servers", db.get_server_list(kind + "/*"));
        found.put("instances", db.get_instance_name_list(kind));
        found.put("classes", db.get_class_list("*"));
        found.put("devices", db.get_device_name(info.server, kind));
        found.put("exported devices", db.get_device_exported(parts[0] + "/*"));
        found.put("hosts", db.get_host_list());
        found.put("servers of its host", db.get_host_server_list(info.hostname));
        DbServInfo server = db.get_server_info(info.server);
        found.put("level", server.startup_level);
        Map<String, Object> properties = new LinkedHashMap<>();
        for (String property : db.get_device_property_list(name, "*"))
            properties.put(property, db.get_device_property(name, property).extractStringArray());
        found.put("properties", properties);
        return found;
    }

    /** Jive's wizard. */
    static Map<String, Object> admin(DeviceProxy admin) throws DevFailed {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("name", admin.name());
        found.put("state", admin.state().toString());
        String[] classes = strings(admin, "QueryClass", null);
        found.put("classes", classes);
        found.put("devices", strings(admin, "QueryDevice", null));
        found.put("class properties", strings(admin, "QueryWizardClassProperty", classes[0]));
        found.put("device properties", strings(admin, "QueryWizardDevProperty", classes[0]));
        return found;
    }

    static String[] strings(DeviceProxy device, String command, String argument) throws DevFailed {
        DeviceData data = new DeviceData();
        if (argument != null) data.insert(argument);
        return device.command_inout(command, data).extractStringArray();
    }

    static Map<String, Object> info(DevInfo_3 info) {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("class", info.dev_class);
        found.put("server", info.server_id);
        found.put("host", info.server_host);
        found.put("url", info.doc_url);
        found.put("type", info.dev_type);
        return found;
    }

    static Map<String, Object> commands(DeviceProxy device) throws DevFailed {
        Map<String, Object> all = new LinkedHashMap<>();
        for (CommandInfo command : device.command_list_query()) {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("in_type", command.in_type);
            found.put("in_type_desc", command.in_type_desc);
            found.put("out_type", command.out_type);
            found.put("out_type_desc", command.out_type_desc);
            found.put("disp_level", command.level.value());
            all.put(command.cmd_name, found);
        }
        return all;
    }

    static Map<String, Object> attributes(DeviceProxy device) throws DevFailed {
        Map<String, Object> all = new LinkedHashMap<>();
        for (AttributeInfoEx info : device.get_attribute_info_ex()) {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("data_type", info.data_type);
            found.put("data_format", info.data_format.value());
            found.put("writable", info.writable.value());
            found.put("disp_level", info.level.value());
            found.put("max_dim_x", info.max_dim_x);
            found.put("max_dim_y", info.max_dim_y);
            found.put("label", info.label);
            found.put("description", info.description);
            found.put("unit", info.unit);
            found.put("standard_unit", info.standard_unit);
            found.put("display_unit", info.display_unit);
            found.put("format", info.format);
            found.put("min_value", info.min_value);
            found.put("max_value", info.max_value);
            found.put("min_alarm", info.alarms.min_alarm);
            found.put("max_alarm", info.alarms.max_alarm);
            found.put("min_warning", info.alarms.min_warning);
            found.put("max_warning", info.alarms.max_warning);
            found.put("abs_change", info.events.ch_event.abs_change);
            found.put("archive_abs_change", info.events.arch_event.abs_change);
            found.put("enum_labels", info.enum_label == null ? new String[0] : info.enum_label);
            found.put("memorized", info.memorized.name());
            all.put(info.name, found);
        }
        return all;
    }

    /** One by one, as the panel `Test Device` reads them. */
    static Map<String, Object> values(DeviceProxy device) throws DevFailed {
        Map<String, Object> all = new LinkedHashMap<>();
        for (String name : device.get_attribute_list()) {
            Map<String, Object> found = new LinkedHashMap<>();
            try {
                DeviceAttribute read = device.read_attribute(name);
                found.put("type", read.getType());
                found.put("quality", read.getQuality().value());
                found.put("dim_x", read.getDimX());
                found.put("dim_y", read.getDimY());
                found.put("value", value(read));
            } catch (DevFailed failed) {
                found.put("errors", errors(failed));
            }
            all.put(name, found);
        }
        return all;
    }

    // --- series -----------------------------------------------------------------------------------------------------

    static Map<String, Object> series(String name, String file) throws Exception {
        DeviceProxy device = new DeviceProxy(name);
        Map<String, Object> found = new LinkedHashMap<>();
        Map<String, Object> written = new LinkedHashMap<>();
        String[][] settings = {
            {"DestinationFilename", file}, {"ExposureTime", "0.0125"}, {"FrameTime", "0.2"},
            {"TriggerMode", "INTERNAL"}, {"nTriggers", "1"}, {"nFramesPerTrigger", "3"},
            {"SaveRaw", "true"}, {"Label", "Größe 5 µm"},
        };
        for (String[] setting : settings) written.put(setting[0], write(device, setting[0], setting[1]));
        found.put("written", written);

        String[][] wrong = {
            {"TriggerMode", "NEVER"}, {"ExposureTime", "1e9"}, {"Rotation", "45"}, {"Metadata", "no JSON"},
            {"nFramesAcquired", "1"},
        };
        Map<String, Object> refused = new LinkedHashMap<>();
        for (String[] setting : wrong) refused.put(setting[0], refusal(() -> write(device, setting[0], setting[1])));
        refused.put("SoftwareTrigger", refusal(() -> device.command_inout("SoftwareTrigger")));
        found.put("refused", refused);

        Told state = new Told(device, "State");
        Told acquired = new Told(device, "nFramesAcquired");
        // The connection is made in the background, what is pushed before is lost: change until it comes. Subscribed
        // last on the same connection, so the others are told from then on too.
        Told exposure = new Told(device, "ExposureTime");
        int[] tries = {0};
        await(List.of(state, acquired, exposure), () -> {
            write(device, "ExposureTime", tries[0]++ % 2 == 0 ? "0.01" : "0.0125");
            return state.count() > 0 && acquired.count() > 0 && exposure.count() > 2; // one comes from subscribing
        });
        Object set = value(device.read_attribute("ExposureTime"));

        device.command_inout("Arm");
        String[] end = {""};
        await("the end of the series", () -> {
            end[0] = device.state().toString();
            return !end[0].equals("MOVING") && !end[0].equals("RUNNING");
        });
        device.command_inout("Stop"); // nothing runs: harmless
        found.put("state", end[0]);
        found.put("status", device.status());
        found.put("acquired", value(device.read_attribute("nFramesAcquired")));
        found.put("file", value(device.read_attribute("LastFilename")));
        await(List.of(state, acquired, exposure), () ->
                end[0].equals(state.last()) && Long.valueOf(3).equals(acquired.last()) && set.equals(exposure.last()));
        Map<String, Object> events = new LinkedHashMap<>();
        for (Told told : List.of(state, acquired, exposure)) events.put(told.name, told.report());
        found.put("events", events);
        return found;
    }

    /** Write what was typed and read it back. */
    static Object write(DeviceProxy device, String name, String text) throws DevFailed {
        DeviceAttribute value = new DeviceAttribute(name);
        switch (device.get_attribute_info(name).data_type) {
            case TangoConst.Tango_DEV_BOOLEAN: value.insert(Boolean.parseBoolean(text)); break;
            case TangoConst.Tango_DEV_LONG64: value.insert(Long.parseLong(text)); break;
            case TangoConst.Tango_DEV_DOUBLE: value.insert(Double.parseDouble(text)); break;
            default: value.insert(text);
        }
        device.write_attribute(value);
        return value(device.read_attribute(name));
    }

    interface Action {
        Object run() throws DevFailed;
    }

    static Object refusal(Action action) {
        try {
            return action.run();
        } catch (DevFailed failed) {
            return errors(failed);
        }
    }

    interface Condition {
        boolean holds() throws DevFailed;
    }

    static void await(Object what, Condition condition) throws DevFailed, InterruptedException {
        long end = System.currentTimeMillis() + LIMIT;
        while (!condition.holds()) {
            if (System.currentTimeMillis() > end) throw new IllegalStateException("waited in vain for " + what);
            Thread.sleep(20);
        }
    }

    /** What one subscription was told. */
    static class Told extends CallBack {
        final String name;
        private final List<Object> values = new ArrayList<>();
        private final List<Object> errors = new ArrayList<>();
        private boolean overZmq = true;

        Told(DeviceProxy device, String name) throws DevFailed {
            this.name = name;
            device.subscribe_event(name, TangoConst.CHANGE_EVENT, this, new String[0]);
        }

        @Override
        public synchronized void push_event(EventData event) {
            if (event.err) {
                errors.add(Walk.errors(new DevFailed(event.errors)));
                return;
            }
            overZmq &= event.event_source == EventData.ZMQ_EVENT;
            try {
                values.add(value(event.attr_value));
            } catch (DevFailed failed) {
                errors.add(Walk.errors(failed));
            }
        }

        synchronized int count() {
            return values.size();
        }

        synchronized Object last() {
            return values.isEmpty() ? null : values.get(values.size() - 1);
        }

        @Override
        public synchronized String toString() {
            return "events of " + name + " after " + values + " " + errors;
        }

        synchronized Map<String, Object> report() {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("values", new ArrayList<>(values));
            found.put("errors", new ArrayList<>(errors));
            found.put("over ZMQ", overZmq);
            return found;
        }
    }

    // --- values -----------------------------------------------------------------------------------------------------

    /** What was read, without set points; the first elements of an array; format and size of what is encoded. */
    static Object value(DeviceAttribute read) throws DevFailed {
        if (read.getQuality() == fr.esrf.Tango.AttrQuality.ATTR_INVALID) return null;
        if (read.getType() == TangoConst.Tango_DEV_ENCODED) {
            DevEncoded encoded = read.extractDevEncoded();
            return List.of(encoded.encoded_format, encoded.encoded_data.length);
        }
        int count = read.getNbRead();
        Object array = count == 0 ? new int[0] : array(read);
        List<Object> elements = new ArrayList<>();
        for (int i = 0; i < Math.min(count, SHOWN); i++) elements.add(element(Array.get(array, i)));
        boolean scalar = read.getDataFormat() == fr.esrf.Tango.AttrDataFormat.SCALAR;
        return scalar ? elements.get(0) : elements;
    }

    static Object array(DeviceAttribute read) throws DevFailed {
        switch (read.getType()) {
            case TangoConst.Tango_DEV_STATE: return read.extractDevStateArray();
            case TangoConst.Tango_DEV_BOOLEAN: return read.extractBooleanArray();
            case TangoConst.Tango_DEV_UCHAR: return read.extractUCharArray();
            case TangoConst.Tango_DEV_ENUM:
            case TangoConst.Tango_DEV_SHORT: return read.extractShortArray();
            case TangoConst.Tango_DEV_USHORT: return read.extractUShortArray();
            case TangoConst.Tango_DEV_LONG: return read.extractLongArray();
            case TangoConst.Tango_DEV_ULONG: return read.extractULongArray();
            case TangoConst.Tango_DEV_LONG64: return read.extractLong64Array();
            case TangoConst.Tango_DEV_ULONG64: return read.extractULong64Array();
            case TangoConst.Tango_DEV_FLOAT: return read.extractFloatArray();
            case TangoConst.Tango_DEV_DOUBLE: return read.extractDoubleArray();
            case TangoConst.Tango_DEV_STRING: return read.extractStringArray();
            default: throw new IllegalStateException(read.getName() + ": no way to show type " + read.getType());
        }
    }

    static Object element(Object one) {
        if (one instanceof DevState) return one.toString();
        return one instanceof Float ? (Object) ((Float) one).doubleValue() : one;
    }

    static List<Map<String, String>> errors(DevFailed failed) {
        List<Map<String, String>> found = new ArrayList<>();
        for (DevError error : failed.errors)
            found.add(Map.of("reason", error.reason, "desc", error.desc, "origin", error.origin));
        return found;
    }
}
