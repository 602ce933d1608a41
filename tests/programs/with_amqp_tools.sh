# Scripts that use amqp-tools can publish lines, fetch messages and pass them to a command. If the command fails, its
# message is requeued.
set -eu

equal() { [ "$1" = "$2" ] || { echo "$1 expected, $2 found"; exit 1; }; }

equal tools "$(amqp-declare-queue -u "$AMQP_URL" -d -q tools)"
printf 'one\ntwo\n' | amqp-publish -u "$AMQP_URL" -r tools -p -l -C text/plain -H 'key: value'
amqp-publish -u "$AMQP_URL" -r tools -b three
equal one "$(amqp-get -u "$AMQP_URL" -q tools)"
amqp-consume -u "$AMQP_URL" -q tools -c 1 -p 1 false || true
equal "two three" "$(amqp-consume -u "$AMQP_URL" -q tools -c 2 -p 1 xargs | xargs)"
equal "" "$(amqp-get -u "$AMQP_URL" -q tools || true)"
equal 0 "$(amqp-delete-queue -u "$AMQP_URL" -q tools)"
