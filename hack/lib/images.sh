# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Two images of one static busybox, as OCI archives in the cache: no registry is ever asked.

pause_image=localhost/pristine/pause:1
test_image=localhost/pristine/busybox:1

# Changes whenever what is in the images may change.
images_folder() {
	local sum
	sum=$(cat "$(static_busybox)" "$here/lib/images.sh" | sha256sum)
	echo "$cache/images/${sum:0:16}"
}

build_images() {
	local folder work
	folder=$(images_folder)
	if [[ -f $folder/pause.tar && -f $folder/busybox.tar ]]; then return; fi
	log "building the images $pause_image and $test_image"
	work=$(mktemp -d)
	mkdir -p "$work/root"/{bin,etc,home,proc,sys,dev,root,tmp,var} "$folder"
	cp "$(static_busybox)" "$work/root/bin/busybox"
	# Before the links of the applets, so that the pause image has none.
	cp -r "$work/root" "$work/pause"
	# (Beware: wget of Debian's static busybox crashes when given -T; 'timeout 3 wget' does not.)
	local applet
	while read -r applet; do ln -sf busybox "$work/root/bin/$applet"; done < <("$work/root/bin/busybox" --list | grep -vx busybox)
	chmod 1777 "$work/root/tmp"
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/:/bin/sh' >"$work/root/etc/passwd"
	printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$work/root/etc/group"

	# A shell, because it reaps orphans: with shareProcessNamespace the pause process is every container's init.
	cat >"$work/Containerfile.pause" <<-'END'
		FROM scratch
		COPY pause/bin /bin
		USER 65535:65535
		ENTRYPOINT ["/bin/busybox", "sh", "-c", "trap exit TERM INT; busybox sleep 2147483647 & while :; do wait; done"]
	END
	# The default command answers TERM; a plain sleep as process 1 would hold every deletion up for 30 s.
	cat >"$work/Containerfile.busybox" <<-'END'
		FROM scratch
		COPY root /
		ENV PATH=/bin
		CMD ["sh", "-c", "trap exit TERM INT; sleep 2147483647 & wait"]
	END
	local image reference
	for image in pause busybox; do
		reference=localhost/pristine/$image:1
		# Own storage: nothing of this shows up among the images of the machine's user. vfs and chroot need no overlay
		# mounts and no namespaces, so this works inside containers too.
		if ! {
			buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs bud --isolation chroot --quiet \
				--file "$work/Containerfile.$image" --tag "$reference" "$work" &&
				buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs push --quiet \
					"$reference" "oci-archive:$folder/$image.new:$reference"
		} >"$work/log" 2>&1 </dev/null; then
			tail -n 20 "$work/log" | sed 's/^/       | /' >&2
			rm -rf "$work"
			die "could not build $reference"
		fi
		mv "$folder/$image.new" "$folder/$image.tar"
	done
	rm -rf "$work"
}

ctr_() { ctr --address "$state/containerd/containerd.sock" --namespace k8s.io "$@"; }

has_image() { [[ -n $(ctr_ images ls -q "name==$1") ]]; }

import_images() {
	local folder image
	folder=$(images_folder)
	for image in pause busybox; do
		if has_image "localhost/pristine/$image:1"; then continue; fi
		ctr_ images import "$folder/$image.tar" >/dev/null || die_with_log containerd "could not import $folder/$image.tar"
		has_image "localhost/pristine/$image:1" || die "imported $folder/$image.tar, but it has no image localhost/pristine/$image:1"
	done
}
