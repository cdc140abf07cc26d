# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# etcd and one or more API servers: all of a cluster with --control-plane-only, and the control plane of one with a node.

kubectl_() { "$bin/kubectl" --kubeconfig "$state/super-admin.conf" --cache-dir "$state/kubectl-cache" "$@"; }

# suffix N: the file name suffix of the Nth API server; empty for the first.
suffix() { if (($1 > 1)); then echo "-$1"; fi; }

# free_port PORT: this port or the next one that no process listens on and that this run has not assigned yet.
given_ports=' '
free_port() {
	local port=$1
	# Local address in hexadecimal; state 0A is LISTEN.
	while [[ $given_ports == *" $port "* ]] ||
		awk -v port="$(printf ':%04X' "$port")" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 } END { exit !found }' /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
		port=$((port + 1))
	done
	given_ports+="$port "
	REPLY=$port
}

make_certificates() {
	if [[ -f $state/certificates ]]; then return; fi
	log "creating keys, certificates and kubeconfigs"
	rm -rf "$state/pki" "$state"/*.conf
	# Kubernetes 1.30 has only the older format, in which all keys are RSA. Those take seconds.
	local format=v1beta4 algorithm='encryptionAlgorithm: ECDSA-P256'
	if ((kubernetes_minor < 31)); then format=v1beta3 algorithm=''; fi
	cat >"$state/kubeadm.yaml" <<-END
		apiVersion: kubeadm.k8s.io/$format
		kind: InitConfiguration
		localAPIEndpoint:
		  advertiseAddress: "$host_address"
		  bindPort: ${api_ports[0]}
		nodeRegistration:
		  name: $name
		  criSocket: unix://$state/containerd/containerd.sock  # otherwise kubeadm searches for one
		---
		apiVersion: kubeadm.k8s.io/$format
		kind: ClusterConfiguration
		clusterName: pristine-$name
		kubernetesVersion: $kubernetes_version  # otherwise kubeadm asks the internet for the newest
		certificatesDir: $state/pki
		controlPlaneEndpoint: "$(in_url "$api_address"):${api_ports[0]}"
		$algorithm
		networking: {serviceSubnet: $service_cidr}
		apiServer: {certSANs: [localhost, 127.0.0.1, "$host_address"]}
	END
	{
		"$bin/kubeadm" init phase certs all --config "$state/kubeadm.yaml" &&
			"$bin/kubeadm" init phase kubeconfig all --config "$state/kubeadm.yaml" --kubeconfig-dir "$state" &&
			"$bin/kubeadm" kubeconfig user --config "$state/kubeadm.yaml" --client-name system:kube-proxy >"$state/kube-proxy.conf"
	} >"$state/logs/kubeadm.log" 2>&1 </dev/null || die_with_log kubeadm "kubeadm could not create the certificates"
	chmod 600 "$state/kube-proxy.conf"
	touch "$state/certificates"
}

start_etcd() {
	local client=https://127.0.0.1:$etcd_port peer=https://127.0.0.1:$etcd_peer_port
	# etcd requires client certificates (made by kubeadm), so other users of the machine cannot read the Secrets.
	# --unsafe-no-fsync: a cluster that does not survive a reboot need not wait for the disk.
	start etcd "$bin/etcd" \
		--name="$name" --data-dir="$state/etcd" --unsafe-no-fsync --log-level=warn \
		--listen-client-urls="$client" --advertise-client-urls="$client" \
		--listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" --initial-cluster="$name=$peer" \
		--client-cert-auth --trusted-ca-file="$state/pki/etcd/ca.crt" \
		--cert-file="$state/pki/etcd/server.crt" --key-file="$state/pki/etcd/server.key" \
		--peer-client-cert-auth --peer-trusted-ca-file="$state/pki/etcd/ca.crt" \
		--peer-cert-file="$state/pki/etcd/peer.crt" --peer-key-file="$state/pki/etcd/peer.key"
}

write_audit_policy() {
	cat >"$state/audit-policy.yaml" <<-'END'
		# Access to running pods and their eviction: everything that Pristine decides about.
		apiVersion: audit.k8s.io/v1
		kind: Policy
		omitStages: [RequestReceived]
		rules:
		  - level: Metadata
		    resources:
		      - group: ""
		        resources: [pods/exec, pods/attach, pods/portforward, pods/proxy, pods/ephemeralcontainers, pods/eviction]
		  # And all requests of Pristine itself.
		  - level: Metadata
		    users: ["system:serviceaccount:pristine-system:pristine"]
		  - level: None
	END
}

# The feature gates as the API server is to get them. It does not start with a gate that it does not know; one that is to
# be off is off without being named.
known_feature_gates() {
	local gate help known=()
	help=$("$bin/kube-apiserver" --help)
	for gate in ${feature_gates//,/ }; do
		if [[ $gate == *=true || $help == *[:\ ]"${gate%=*}=true|false"* ]]; then known+=("$gate"); fi
	done
	join "${known[@]}"
}

# write_admission_configuration N: lets the Nth API server read policies from files in its static-policies, which is empty at
# first. The file is the one that manifests/static-guard ships, with another directory.
write_admission_configuration() {
	local policies=$state/static-policies$(suffix "$1")
	mkdir -p "$policies"
	sed "s|staticManifestsDir: .*|staticManifestsDir: $policies|" "$here/../manifests/static-guard/admission-configuration.yaml" \
		>"$state/admission-configuration$(suffix "$1").yaml"
}

# start_api_server N
start_api_server() {
	local n=$1 pki=$state/pki flags
	# shellcheck disable=SC2054 # the comma belongs to the flag
	flags=(
		--bind-address="$api_address" --secure-port="${api_ports[n - 1]}" --advertise-address="${advertise_address}"
		--service-cluster-ip-range="$service_cidr"
		--etcd-servers="https://127.0.0.1:$etcd_port" --etcd-cafile="$pki/etcd/ca.crt"
		--etcd-certfile="$pki/apiserver-etcd-client.crt" --etcd-keyfile="$pki/apiserver-etcd-client.key"
		--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key"
		--service-account-issuer=https://kubernetes.default.svc.cluster.local
		--service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key"
		--requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client
		--requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group
		--requestheader-extra-headers-prefix=X-Remote-Extra-
		--proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key"
		# No DNS resolves the node's name.
		--kubelet-preferred-address-types=InternalIP
		--kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" --kubelet-client-key="$pki/apiserver-kubelet-client.key"
		--authorization-mode=Node,RBAC --allow-privileged --profiling=false
		--audit-policy-file="$state/audit-policy.yaml" --audit-log-path="$state/logs/audit$(suffix "$n").log"
	)
	if [[ -n $feature_gates ]]; then flags+=(--feature-gates="$(known_feature_gates)"); fi
	if ((kubernetes_minor >= 37)); then
		write_admission_configuration "$n"
		flags+=(--admission-control-config-file="$state/admission-configuration$(suffix "$n").yaml")
	fi
	if [[ $mode == control-plane ]]; then
		# Without kube-proxy, ClusterIPs do not work: the API server dials the addresses of a webhook's EndpointSlice
		# (before 1.34, of its Endpoints).
		flags+=(--enable-aggregator-routing=true)
	fi
	if [[ $mode == control-plane ]] || ((n > 1)); then
		# All servers advertise the same address. The Service "kubernetes" has the first server as its endpoint, or none if
		# that server listens on loopback, which is not allowed in an endpoint.
		flags+=(--endpoint-reconciler-type=none)
	fi
	start "kube-apiserver$(suffix "$n")" "$bin/kube-apiserver" "${flags[@]}"
}

write_kubeconfigs() {
	local n
	for ((n = 2; n <= ${#api_ports[@]}; n++)); do
		if [[ -f $state/admin-$n.conf ]]; then continue; fi # another process may be reading it
		sed "s|server: .*|server: https://$(in_url "$api_address"):${api_ports[n - 1]}|" "$state/admin.conf" >"$state/admin-$n.conf"
		chmod 600 "$state/admin-$n.conf"
	done
}

ready() { kubectl_ get --raw /readyz --server "https://$(in_url "$api_address"):$1" --request-timeout 5s; }

start_control_plane() {
	make_certificates
	if [[ ! -f $state/audit-policy.yaml ]]; then write_audit_policy; fi
	write_kubeconfigs
	start_etcd
	start_api_server 1
}

first_server_ready() {
	wait_for kube-apiserver 60 "the API server is ready" ready "${api_ports[0]}"
	log "the API server is ready"
	if [[ -f $state/bindings ]]; then return; fi
	# 'kubeadm init' creates the first binding in a later phase than those used here. Without it, admin.conf has no rights.
	# The second binding lets the API server call the kubelet for exec, attach, logs.
	kubectl_ apply --server-side -f - >/dev/null <<-'END' || die_with_log kube-apiserver "could not create the first role bindings"
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: "kubeadm:cluster-admins"}
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
		subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "kubeadm:cluster-admins"}]
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: "pristine:kubelet-api-admin"}
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:kubelet-api-admin"}
		subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client}]
	END
	touch "$state/bindings"
}

# Starts the other servers after the first is ready: it writes the default objects into the empty etcd, and other servers
# would conflict with it.
other_servers_ready() {
	local n
	for ((n = 2; n <= ${#api_ports[@]}; n++)); do start_api_server "$n"; done
	for ((n = 2; n <= ${#api_ports[@]}; n++)); do
		wait_for "kube-apiserver-$n" 60 "API server $n is ready" ready "${api_ports[n - 1]}"
	done
}
