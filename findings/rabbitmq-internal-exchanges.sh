#!/usr/bin/env bash
# RabbitMQ 4.3.6 leaves internal exchanges that users made out of exported definitions, but exports their bindings. So it
# refuses to import its own export into an empty virtual host: queues and other exchanges are made, but no binding.
# 4.0.5 exports internal exchanges. The script needs root, for debootstrap and chroot.
#
#   RabbitMQ 4.3.6
#   exported exchanges: orders
#   exported bindings: audit -> log, orders -> audit
#   import: resources_missing audit
#   bindings after the import: none
set -euo pipefail
scratch=$(mktemp -d)
leave() {
    in_root rabbitmqctl --quiet shutdown >/dev/null 2>&1 || true
    in_root epmd -kill >/dev/null 2>&1 || true
    if mountpoint --quiet "$scratch/root/proc"; then umount "$scratch/root/proc"; fi
    rm -rf "$scratch"
}
trap leave EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/$')
debootstrap --variant=minbase --include=rabbitmq-server forky "$scratch/root" "$mirror" \
    /usr/share/debootstrap/scripts/sid >/dev/null 2>&1
echo "127.0.0.1 localhost" >"$scratch/root/etc/hosts"
mountpoint --quiet "$scratch/root/proc" || mount -t proc proc "$scratch/root/proc"
in_root() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/var/lib/rabbitmq LANG=C.UTF-8 RABBITMQ_NODENAME=findings@localhost \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=25671 RABBITMQ_DIST_PORT=25672 ERL_EPMD_PORT=24369 ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" \
        chroot "$scratch/root" "$@"
}
in_root /usr/lib/rabbitmq/bin/rabbitmq-server >"$scratch/log" 2>&1 &
for _ in $(seq 60); do  # await_startup fails at once while there is no node at all
    if in_root rabbitmqctl --quiet await_startup --timeout 60 >/dev/null 2>&1; then break; fi
    sleep 1
done

cat >"$scratch/root/tmp/before.json" <<'EOF'
{
  "exchanges": [
    {"name": "orders", "vhost": "/", "type": "topic", "durable": true, "auto_delete": false, "arguments": {}},
    {"name": "audit", "vhost": "/", "type": "fanout", "durable": true, "auto_delete": false, "internal": true,
     "arguments": {}}
  ],
  "queues": [{"name": "log", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {}}],
  "bindings": [
    {"source": "orders", "vhost": "/", "destination": "audit", "destination_type": "exchange", "routing_key": "#",
     "arguments": {}},
    {"source": "audit", "vhost": "/", "destination": "log", "destination_type": "queue", "routing_key": "",
     "arguments": {}}
  ]
}
EOF
in_root rabbitmqctl --quiet import_definitions /tmp/before.json >/dev/null
in_root rabbitmqctl --quiet export_definitions /tmp/exported.json >/dev/null
in_root rabbitmqctl --quiet delete_vhost / >/dev/null
in_root rabbitmqctl --quiet add_vhost / >/dev/null
in_root rabbitmqctl --quiet import_definitions /tmp/exported.json >"$scratch/import" 2>&1 || true
in_root rabbitmqctl --quiet list_bindings source_name --no-table-headers >"$scratch/bindings"
{
    echo "RabbitMQ $(in_root rabbitmqctl --quiet version)"
    python3 - "$scratch/root/tmp/exported.json" <<'EOF'
import json
import sys

exported = json.load(open(sys.argv[1]))
own = [each["name"] for each in exported["exchanges"] if not each["name"].startswith("amq.")]
print("exported exchanges:", *own)
print("exported bindings:", ", ".join(sorted(f"{each['source']} -> {each['destination']}" for each in exported["bindings"])))
EOF
    echo "import: $(grep -o 'resources_missing' "$scratch/import" | head -n 1) $(grep -o 'audit' "$scratch/import" | head -n 1)"
    echo "bindings after the import: $(grep . "$scratch/bindings" || echo none)"
} >"$scratch/output"
cat "$scratch/output"
diff <(sed -n 's/^#   //p' "$0") "$scratch/output"
